-- code: card-testing
-- owner: fraud-team
-- reason: Small amounts in quick succession: a stolen card is being tried.
-- severity: medium
-- action: alert
amount < 5 and card_count_1h >= 4
