-- code: cash-abroad
-- owner: fraud-team
-- reason: Much cash abroad; the limit is lower in another currency.
-- severity: medium
-- action: alert
transaction_type = 'cash'
and country not in ('DE', 'AT', 'CH')
and amount >= case when currency = 'EUR' then 300 else 150 end
