-- code: declined-online
-- owner: fraud-team
-- reason: Declined online, after other attempts within the hour.
-- severity: low
-- action: tag
authorisation = 'declined' and channel = 'web' and card_count_1h >= 3
