"""What is said of one image beside its class: how sure, and how like what was seen in training."""
