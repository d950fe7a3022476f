"""From what a lab is to what it is to be: desired machines, the plan, the run of `up`, and its last probe."""
