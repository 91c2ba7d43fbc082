"""Networks with published weights that are used and never trained."""

from typing import Any, Self

from torch import Tensor, nn


class FrozenModule(nn.Module):
    """Always in evaluation mode, and absent from checkpoints.

    The weights come from a published file, so a training checkpoint holds none of them, and loading one leaves them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_keep_own_weights)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever the module around this one does.

        Args:
            mode: ignored.

        Returns:
            The module itself.
        """
        return super().train(False)

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Contribute nothing to a checkpoint."""
        return {} if destination is None else destination


def _keep_own_weights(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    own = nn.Module.state_dict(module)
    state_dict.update({prefix + name: tensor for name, tensor in own.items()})
