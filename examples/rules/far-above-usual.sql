-- code: far-above-usual
-- owner: fraud-team
-- reason: Far more than the card spends as a rule.
-- severity: high
-- action: alert
card_amount_to_regular > 8 and amount > 300
