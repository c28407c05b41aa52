"""The feedback and the learn agents' kernels: decisions and labels become examples, and the online model learns."""
