"""Job (a) in Kafka Streams: ``FraudScoring.java``, and what compiles and starts it."""
