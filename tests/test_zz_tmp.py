from tests.test_state_machine import *
from tests.test_state_machine import world
from tests.conftest import *
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_x(world):
    explore(world, examples=600, steps=50, derandomize=True)
    print(world.seen)
