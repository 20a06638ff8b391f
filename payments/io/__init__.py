"""What payments do with files, the network and time: key files, ledger, chain, redemption task."""
