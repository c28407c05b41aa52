-- code: merchant-surge
-- owner: fraud-team
-- reason: The merchant has many more transactions than on other days.
-- severity: low
-- action: tag
merchant_surge > 5 and merchant_count_1d > 30
