"""Anthropic's Messages protocol, as clients speak it (`inbound`) and as backends do (`upstream`)."""
