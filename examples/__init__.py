"""Programs that show the library at work, run from the checkout's root; scripts/demo runs them all."""
