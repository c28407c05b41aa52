-- code: night-at-new-merchant
-- owner: fraud-team
-- reason: A purchase at night at a merchant that the card has not used lately.
-- severity: medium
-- action: alert
transaction_type = 'purchase' and hour < 5 and card_merchant_count = 0 and amount > 100
