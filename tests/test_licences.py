import json

import numpy as np
import pytest

from restorekit.api import load_pipeline
from restorekit.config import PipelineSpec
from restorekit.errors import ConfigError, LicenceError
from restorekit.image import Image
from restorekit.licences import ACADEMIC, Grade, check_licences, grade, resolve_policy
from restorekit.pipeline import _say_once
from restorekit.plan import parts


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", Grade.PERMISSIVE),
        ("mit", Grade.PERMISSIVE),
        ("MIT License", Grade.PERMISSIVE),
        ("Apache-2.0 AND MIT", Grade.PERMISSIVE),
        ("MIT AND GPL-3.0-or-later", Grade.SHARE_ALIKE),
        ("MIT OR GPL-3.0-only", Grade.PERMISSIVE),
        ("GPL-2.0-only WITH Classpath-exception-2.0", Grade.SHARE_ALIKE),
        ("CC-BY-4.0", Grade.PERMISSIVE),
        ("CC-BY-NC-SA-4.0", Grade.NONCOMMERCIAL),
        ("MIT AND CC-BY-NC-4.0", Grade.NONCOMMERCIAL),
        (ACADEMIC, Grade.NONCOMMERCIAL),
        ("(MIT OR CC-BY-NC-4.0) AND BSD-3-Clause", Grade.PERMISSIVE),
        ("unknown", Grade.UNKNOWN),
        ("LicenseRef-Something", Grade.UNKNOWN),
        ("MIT AND", Grade.UNKNOWN),
        ("(MIT", Grade.UNKNOWN),
        ("see the README", Grade.UNKNOWN),
        ("", Grade.UNKNOWN),
    ],
)
def test_a_licence_allows_what_its_terms_allow(expression, expected):
    assert grade(expression) == expected


def spec_of(*weights):
    return PipelineSpec.parse(
        {"steps": [{"restore": {"name": "trained", "weights": name}} for name in weights]}
    )


def planned(*weights):
    return [part for step in parts(spec_of(*weights)) for part in step]


@pytest.mark.parametrize(
    ("policy", "refused"),
    [
        ("any", []),
        ("noncommercial", ["weights trained/odd (LicenseRef-Odd)"]),
        ("permissive", ["weights trained/odd (LicenseRef-Odd)", "weights trained/nc (CC-BY-NC-4.0)"]),
    ],
)
def test_a_policy_names_everything_outside_of_it(policy, refused, published):
    published("free")
    published("nc", licence="CC-BY-NC-4.0")
    published("odd", licence="LicenseRef-Odd")
    found = planned("free", "odd", "nc")
    if refused:
        with pytest.raises(LicenceError) as caught:
            check_licences(found, policy)
        assert caught.value.message == f"the license policy {policy!r} does not allow {', '.join(refused)}"
        return
    notices = check_licences(found, policy)
    assert notices == [
        "weights trained/odd has a licence that is not known to allow any use: LicenseRef-Odd",
        "weights trained/nc is for non-commercial use only: CC-BY-NC-4.0",
    ]


def test_what_is_refused_is_never_downloaded(published, shop):
    published("free")
    published("nc", licence="CC-BY-NC-4.0", served="nc.pth")
    with pytest.raises(LicenceError, match="trained/nc"):
        load_pipeline(spec_of("free", "nc"), license_policy="permissive")
    assert shop.requests == []


def test_what_is_allowed_by_default_is_noticed_once_and_recorded(published, caplog):
    _say_once.cache_clear()
    published("nc", licence="CC-BY-NC-4.0")
    chain, _ = load_pipeline(spec_of("nc")), load_pipeline(spec_of("nc"))
    assert caplog.text.count("weights trained/nc is for non-commercial use only") == 1
    result = chain(Image.of(np.zeros((8, 8, 3), np.uint8)))
    assert result.licences == ("MIT", "CC-BY-NC-4.0")
    assert json.loads(result.to_json())["licences"] == ["MIT", "CC-BY-NC-4.0"]


def test_the_environment_sets_the_policy_and_an_argument_overrides_it(published, monkeypatch):
    published("nc", licence="CC-BY-NC-4.0")
    monkeypatch.setenv("RESTOREKIT_LICENSE_POLICY", "Permissive")
    assert resolve_policy(None) == "permissive"
    with pytest.raises(LicenceError):
        load_pipeline(spec_of("nc"))
    load_pipeline(spec_of("nc"), license_policy="any")


def test_an_unknown_policy_names_a_near_one(monkeypatch):
    with pytest.raises(ConfigError, match="license_policy: unknown policy 'permisive'") as caught:
        resolve_policy("permisive")
    assert caught.value.hint == "did you mean 'permissive'?"
    monkeypatch.setenv("RESTOREKIT_LICENSE_POLICY", "strict")
    with pytest.raises(ConfigError, match="RESTOREKIT_LICENSE_POLICY: unknown policy 'strict'"):
        resolve_policy(None)
