"""OpenAI's protocol, as clients speak it (`inbound`) and as backends do (`upstream`)."""
