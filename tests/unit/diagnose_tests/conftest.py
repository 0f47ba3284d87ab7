from tests.unit.loop_tests.conftest import one_thread  # noqa: F401 - training is compared byte for byte here too
