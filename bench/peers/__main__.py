"""`python -m bench.peers MODULE:CLASS SETTINGS`: one measured implementation's process."""

from bench.peers.protocol import main

if __name__ == "__main__":
    main()
