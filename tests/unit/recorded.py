"""Studies asked for over the interface, and the rows of the record that they leave."""

from test_serve_api import LEFT, Client, MeanGray

from serve.api import PREDICT_PATH, build_api
from serve.record import read_rows


def client_with(record, predictor=None):
    """Of an interface that leaves its rows in this record."""
    return Client(build_api(predictor or MeanGray(), record=record))


def post(client, *views, headers=None, **data):
    files = [("views", view) for view in views or [("a.png", LEFT)]]
    return client.post(PREDICT_PATH, files=files, data=data, headers=headers)


def rows_of(url):
    return list(read_rows(url))
