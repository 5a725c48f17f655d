"""Speed on the CPU that leaves every value as it is: memory layout, and convolution weights prepared once."""

from .packing import PrepackedConvolutions, prepack_convolutions, to_channels_last


__all__ = ["PrepackedConvolutions", "prepack_convolutions", "to_channels_last"]
