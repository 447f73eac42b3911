import threading

import pytest

from efficientad.system.parallel import parallel_map


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_parallel_map_keeps_the_order(workers):
    assert list(parallel_map(lambda x: x * x, range(50), workers)) == [x * x for x in range(50)]


def test_parallel_map_stays_close_to_its_consumer():
    """An endless source must not fill the memory."""
    taken = []

    def source():
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    results = parallel_map(lambda x: x, source(), 2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 2 * 2
    results.close()
    assert threading.active_count() < 10


def test_parallel_map_raises_what_the_function_raises():
    results = parallel_map(lambda x: 1 // x, [1, 0, 1], 2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
