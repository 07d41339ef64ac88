"""Where handlers run: lanes, each with one worker. Today they are made of the stock pools."""
