"""`python -m ttepretrain`: the same command as the script `ttepretrain`."""

from ttepretrain.commands.main import main

if __name__ == "__main__":
    main()
