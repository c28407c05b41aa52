-- code: merchant-with-frauds
-- owner: fraud-team
-- reason: Frauds are known at this merchant that no amount explains.
-- severity: high
-- action: alert
merchant_unexplained_fraud_30d >= 2 and amount > 50
