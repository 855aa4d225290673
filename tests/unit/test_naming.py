from pathlib import Path

import pytest

from mura_ray.config import Augmentation
from mura_ray.distributed.naming import RUN_FILE, SWEEP_FILE, check_claim, check_name, claim


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "weights", "a b"])
def test_a_name_that_cannot_be_a_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="--name"):
        check_name(name)


def test_a_name_is_taken_by_what_was_first_asked_for(tmp_path: Path) -> None:
    home, asked = str(tmp_path / "home"), Augmentation(rotation_deg=10)
    check_claim(home, SWEEP_FILE, asked, same=("rotation_deg",))
    claim(home, SWEEP_FILE, asked)
    check_claim(home, SWEEP_FILE, asked, same=("rotation_deg",))
    check_claim(home, SWEEP_FILE, Augmentation(rotation_deg=10, scale=0.1), same=("rotation_deg",))
    with pytest.raises(ValueError, match=r"another rotation_deg \(see its sweep\.json\)"):
        check_claim(home, SWEEP_FILE, Augmentation(rotation_deg=11), same=("rotation_deg",))
    with pytest.raises(ValueError, match="something else"):
        check_claim(home, RUN_FILE, asked, same=("rotation_deg",))
