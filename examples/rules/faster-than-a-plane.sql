-- code: faster-than-a-plane
-- owner: fraud-team
-- reason: The card was used in more than one country within two hours, and not online.
-- severity: critical
-- action: alert
card_distinct_country_2h >= 2 and (channel is null or channel <> 'web')
