"""How long a private Ray is kept."""

from __future__ import annotations

from serve.deployments.lifetime import FAREWELL_S, RayLifetime


def test_a_ray_is_kept_until_who_took_its_last_endpoint_away_has_left_it() -> None:
    clock, served, recorded = [0.0], [True], [True]
    lifetime = RayLifetime(lambda: served[0], lambda: recorded[0], lambda: clock[0])
    assert lifetime.is_needed()
    served[0], clock[0] = False, 100.0
    assert lifetime.is_needed(), "an undeploy still talks to this Ray"
    recorded[0] = False
    assert not lifetime.is_needed()
    recorded[0], clock[0] = True, 100.0 + FAREWELL_S
    assert not lifetime.is_needed(), "one that was killed is not waited for"
    served[0] = True
    assert lifetime.is_needed()
