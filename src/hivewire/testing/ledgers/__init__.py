"""What every ledger promises, as tests. Bind them with one fixture `ledgers`; see `LedgerFabric`."""
