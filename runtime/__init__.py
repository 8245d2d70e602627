"""The PEFT tuner that runs a bundle."""
