-- code: gift-cards
-- owner: fraud-team
-- reason: Several purchases of gift cards or credit within an hour.
-- severity: high
-- action: alert
mcc in ('5815', '5816', '5817', '5818', '6540')
and amount between 25 and 500
and card_count_1h >= 2
