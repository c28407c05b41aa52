-- code: tested-then-large
-- owner: fraud-team
-- reason: A large amount on a day that began with a very small one.
-- severity: high
-- action: alert
card_min_1d < 3 and card_count_1d >= 3 and amount > 200
