"""What the tests of the layers that stand in for torch's share."""

import pytest


@pytest.fixture
def here(monkeypatch):
    """Layers compute with cnorm whatever the size of their input."""
    from cnorm.interop import _torch_modules as layers

    monkeypatch.setattr(layers, "_pays", lambda *_: True)
    monkeypatch.setattr(layers, "LEAST", dict.fromkeys(layers.LEAST, (0, 0, 0, 0)))


@pytest.fixture
def computed(monkeypatch):
    """The norms that cnorm has computed."""
    from cnorm.interop import _torch_autograd as bridge

    norms, compute = [], bridge.compute

    def counted(norm, *args):
        norms.append(norm)
        return compute(norm, *args)

    monkeypatch.setattr(bridge, "compute", counted)
    return norms
