"""Us beside others that run Jupyter kernels on other machines by SSH, and beside a local kernel, in one run."""
