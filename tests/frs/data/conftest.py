from tests.frs.training.conftest import small

__all__ = ["small"]
