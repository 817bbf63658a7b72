"""Files of identity adapters other than IP-Adapter and PhotoMaker, one module per kind."""
