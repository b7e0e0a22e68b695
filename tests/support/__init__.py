"""What several folders of tests share: small real models, inputs, servers and stand-ins."""
