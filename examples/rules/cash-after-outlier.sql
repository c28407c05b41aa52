-- code: cash-after-outlier
-- owner: fraud-team
-- reason: Cash within an hour of an unusual amount.
-- severity: medium
-- action: alert
transaction_type = 'cash' and card_seconds_since_outlier < 3600
