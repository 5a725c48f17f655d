"""`accelerate launch training/train_autoencoder.py` is `mediffusion train autoencoder`; see its `--help`."""

from mediffusion_diffusers.commands.mediffusion import main


if __name__ == "__main__":
    main("train", "autoencoder")
