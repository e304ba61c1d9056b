"""The screener: claim -> pixels -> preprocess -> score -> decide -> record -> route, in a process of its own."""
