import asyncio
import hmac
import json
import logging
import os
import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from serve import access, tokens
from serve.access import TokenFile
from serve.api import PREDICT_PATH, build_api
from serve.limits import Limits
from serve.tokens import add_token, revoke_token
from tests.unit.api_client import Client, MeanGray, client_of, post, problem_of

OPEN = ["/", "/docs", "/viewer/main.js", "/openapi.json", "/healthz", "/readyz"]
GUARDED = ["/v1/ensemble", PREDICT_PATH, "/v1/studies", "/metrics", "/healthz/", "/viewer", "/v1/healthz"]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "tokens.json"


@pytest.fixture
def token(file):
    return add_token(file, "pacs")


@pytest.fixture
def client(file, token):
    return guarded(file)


def guarded(file, **limits):
    return Client(build_api(MeanGray(), Limits(**limits), tokens=TokenFile(file)))


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def get(client, token, path="/v1/ensemble"):
    return client.request("GET", path, headers=bearer(token))


class TestWithoutAToken:
    @pytest.mark.parametrize("path", OPEN)
    def test_pages_and_probes_are_open(self, client, path):
        assert client.get(path).status_code == 200

    @pytest.mark.parametrize("path", GUARDED)
    def test_everything_else_is_not(self, client, path):
        response = client.get(path)
        assert problem_of(response)["status"] == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-content-type-options"] == "nosniff"

    @pytest.mark.parametrize("path", ["/v1/../healthz", "//healthz", "/healthz/../v1/ensemble", "", "/HEALTHZ"])
    def test_addresses_that_no_client_would_send_are_not_open_either(self, file, token, path):
        statuses = []

        async def receive():
            raise AssertionError("read")

        async def send(message):
            statuses.append(message.get("status"))

        api = build_api(MeanGray(), tokens=TokenFile(file))
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
        asyncio.run(api(scope, receive, send))
        assert statuses[0] == 401

    def test_a_study_takes_no_place_and_is_not_looked_at(self, file, token):
        assert problem_of(post(guarded(file, predictions=0)))["status"] == 401
        assert post(guarded(file, predictions=0), headers=bearer(token)).status_code == 429

    @pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic cGFjczpwYWNz"])
    def test_other_credentials_are_none(self, client, header):
        response = client.request("GET", "/v1/ensemble", headers={"Authorization": header})
        assert response.headers["www-authenticate"] == "Bearer"
        assert problem_of(response)["status"] == 401

    def test_a_token_in_the_address_does_not_count(self, client, token):
        assert client.get(f"/v1/ensemble?access_token={token}&token={token}").status_code == 401

    def test_the_interfaces_description_says_how_to_send_one(self, client):
        spec = client.get("/openapi.json").json()
        assert spec["components"]["securitySchemes"] == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
        assert spec["paths"][PREDICT_PATH]["post"]["security"] == [{"HTTPBearer": []}]
        assert "securitySchemes" not in client_of().get("/openapi.json").json()["components"]

    def test_nothing_is_asked_where_no_file_is_configured(self):
        assert client_of().get("/v1/ensemble").status_code == 200

    def test_what_is_open_is_told_below_the_prefix_of_the_application(self, file, token):
        api = build_api(MeanGray(), tokens=TokenFile(file))
        client = Client(Starlette(routes=[Mount("/healthz", api)]))
        assert client.get("/healthz/readyz").status_code == 200
        assert client.get("/healthz/v1/ensemble").status_code == 401
        assert get(client, token, "/healthz/v1/ensemble").status_code == 200


class TestWithAToken:
    def test_its_holder_is_answered(self, client, token):
        assert get(client, token).status_code == 200
        assert post(client, headers=bearer(token)).status_code == 200
        assert post(client, headers={"Authorization": f"bearer  {token}"}).status_code == 200

    @pytest.mark.parametrize("change", [str.upper, lambda token: token[:-1], lambda token: token + "é", lambda _: "x"])
    def test_any_other_is_not_valid(self, client, token, change):
        headers = [(b"authorization", f"Bearer {change(token)}".encode("latin-1"))]
        response = client.request("GET", "/v1/ensemble", headers=headers)
        assert problem_of(response)["status"] == 401
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'

    def test_the_hash_in_the_file_is_no_token(self, client, file):
        (entry,) = json.loads(file.read_text())["tokens"]
        assert get(client, entry["sha256"]).status_code == 401

    def test_a_revoked_one_is_refused_by_the_very_next_request_and_others_go_on(self, client, file, token):
        other = add_token(file, "research")
        assert [get(client, secret).status_code for secret in (token, other)] == [200, 200]
        revoke_token(file, "pacs")
        response = get(client, token)
        assert problem_of(response)["status"] == 401
        assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
        assert get(client, other).status_code == 200

    def test_an_expired_one_is_refused(self, client, file, token):
        content = json.loads(file.read_text())
        for expires, status in ((timedelta(days=1), 200), (-timedelta(seconds=1), 401)):
            content["tokens"][0]["expires"] = (datetime.now(UTC) + expires).isoformat()
            file.write_text(json.dumps(content))
            assert get(client, token).status_code == status

    @pytest.mark.parametrize("place", [0, 1, 2, None])
    def test_all_entries_are_compared_in_constant_time_wherever_it_is_found(self, file, monkeypatch, place):
        secrets = [add_token(file, f"caller-{number}") for number in range(3)]
        revoke_token(file, "caller-1")
        client, compared = guarded(file), []

        def compare_digest(one, other):
            compared.append(one)
            return hmac_compare_digest(one, other)

        hmac_compare_digest = hmac.compare_digest
        monkeypatch.setattr(access.hmac, "compare_digest", compare_digest)
        status = get(client, "unknown" if place is None else secrets[place]).status_code
        assert status == (200 if place in (0, 2) else 401)
        assert compared == [entry["sha256"] for entry in json.loads(file.read_text())["tokens"]]

    def test_it_reaches_no_log_and_no_answer(self, client, file, token, caplog):
        caplog.set_level(0)
        answers = [
            get(client, token),
            get(client, token, f"/nowhere?token={token}"),
            post(client, headers=bearer(token)),
        ]
        file.write_text(f'{{"tokens": [{{"name": "pacs", "sha256": "{token}", "created": "2026-01-01T00:00:00Z"}}]}}')
        answers.append(get(client, token))
        assert [answer.status_code for answer in answers] == [200, 404, 200, 503]
        logged = "".join(record.getMessage() for record in caplog.records if record.name != "httpx")  # not the client's
        assert "tokens.0.sha256" in logged
        assert token not in logged + "".join(answer.text + str(answer.headers) for answer in answers)


def _remove(file):
    file.unlink()


def _spoil(file):
    file.write_text(file.read_text()[:-20])


def _share(file):
    file.chmod(0o660)


class TestFile:
    @pytest.mark.parametrize("harm", [_remove, _spoil, _share])
    def test_one_that_says_no_longer_who_may_come_in_lets_nobody_in(self, client, file, token, caplog, harm):
        content = file.read_bytes()
        harm(file)
        for _ in range(3):
            assert problem_of(get(client, token))["status"] == 503
        assert client.get("/healthz").status_code == 200
        (record,) = [record for record in caplog.records if record.name == "serve.access"]
        assert record.levelno == logging.ERROR
        assert str(file) in record.message
        assert str(file) not in get(client, token).text
        file.write_bytes(content)
        file.chmod(0o600)
        assert get(client, token).status_code == 200
        harm(file)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            TokenFile(file)

    def test_may_be_read_by_others(self, file, token):
        file.chmod(0o644)
        assert get(guarded(file), token).status_code == 200

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_must_not_belong_to_another_user(self, file, token):
        os.chown(file, 4321, -1)
        with pytest.raises(ValueError, match="user with id 4321, who could change it: `chown`"):
            TokenFile(file)

    def test_without_a_token_is_refused_with_the_command_that_makes_one(self, file):
        file.write_text('{"tokens": []}')
        file.chmod(0o600)
        with pytest.raises(ValueError, match=r"python -m serve\.tokens add NAME --file"):
            TokenFile(file)

    @pytest.mark.parametrize(
        "content",
        ["", "[]", '{"tokens": [{"name": "a"}]}', '{"tokens": [], "more": 1}'],
    )
    def test_of_another_content_is_refused(self, file, content):
        file.write_text(content)
        file.chmod(0o600)
        with pytest.raises(ValueError, match="is no token file"):
            TokenFile(file)


class TestCommand:
    def test_prints_a_token_once_and_keeps_its_hash_for_the_owner_alone(self, file, capsys):
        assert tokens.main(["add", "pacs", "--file", str(file)]) == 0
        (secret,) = capsys.readouterr().out.split()
        assert len(secret) >= 43
        assert file.stat().st_mode & 0o777 == 0o600
        assert secret not in file.read_text()
        assert get(guarded(file), secret).status_code == 200
        assert tokens.main(["list", "--file", str(file)]) == 0
        listed = capsys.readouterr().out
        assert listed.startswith("pacs ")
        assert "valid since" in listed
        assert secret not in listed

    def test_takes_the_file_of_the_environment(self, file, monkeypatch, capsys):
        assert tokens.main(["list"]) == 1
        assert "pass --file PATH or set MURA_TOKENS" in capsys.readouterr().err
        monkeypatch.setenv("MURA_TOKENS", str(file))
        assert tokens.main(["add", "pacs", "--days", "3"]) == 0
        assert tokens.main(["revoke", "pacs"]) == 0
        capsys.readouterr()
        assert tokens.main(["list"]) == 0
        assert "revoked" in capsys.readouterr().out

    @pytest.mark.parametrize("name", ["pacs", "loopback", "stranger", "two words", "", "a" * 65, "../x", "new\nline"])
    def test_refuses_a_name_that_is_taken_or_unfit(self, file, token, name, capsys):
        before = file.read_bytes()
        assert tokens.main(["add", name, "--file", str(file)]) == 1
        assert repr(name) in capsys.readouterr().err
        assert file.read_bytes() == before

    def test_a_name_stays_taken_once_it_is_revoked(self, file, token):
        revoke_token(file, "pacs")
        with pytest.raises(ValueError, match="take another, such as pacs-2"):
            add_token(file, "pacs")

    def test_revoking_twice_keeps_the_first_time(self, file, token):
        revoke_token(file, "pacs")
        before = file.read_text()
        revoke_token(file, "pacs")
        assert file.read_text() == before

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [(["revoke", "unknown"], "no token 'unknown'"), (["add", "x", "--days", "0"], "--days 0: pass 1 to 36,500")],
    )
    def test_says_what_was_wrong(self, file, token, arguments, reason, capsys):
        assert tokens.main([*arguments, "--file", str(file)]) == 1
        assert reason in capsys.readouterr().err

    def test_two_at_once_lose_nothing(self, file):
        threads = [threading.Thread(target=add_token, args=(file, f"caller-{number}")) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [entry["name"] for entry in json.loads(file.read_text())["tokens"]]
        assert sorted(names) == [f"caller-{number}" for number in range(8)]
