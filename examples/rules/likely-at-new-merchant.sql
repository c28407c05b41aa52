-- code: likely-at-new-merchant
-- owner: fraud-team
-- reason: The models find it likely enough, and the card is new at the merchant.
-- severity: medium
-- action: alert
score >= 0.2 and card_merchant_count = 0 and lower(merchant_id) not like 'test%'
