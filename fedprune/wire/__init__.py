"""Job and Update to bytes and back: every byte that is reported was really produced."""
