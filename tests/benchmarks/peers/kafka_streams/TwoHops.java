import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.Arrays;
import java.util.Properties;
import java.util.Random;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.function.Function;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * The two hops of {@code tests.benchmarks.two_hops} in Kafka Streams, exactly once: from transactions by card to rows by
 * merchant, and from these to decisions and features by card. The records have the sizes of the pipeline's.
 *
 * <p>With windows each hop keeps its keys' transactions of the last 30 days as {@link FraudScoring} does it: in RocksDB
 * behind the record cache, with a changelog topic. But for the guarantee and the commit interval all is as by default.
 */
public final class TwoHops {
    static final int ROW_BYTES = 400;
    static final int DECISION_BYTES = 880;
    static final int FEATURES_BYTES = 738;

    /** What records are filled up with: random digits, which compressors halve. */
    private static final byte[] FILL = new Random(1)
            .ints(1 << 16, 0, 16)
            .collect(StringBuilder::new, (text, digit) -> text.append(Character.forDigit(digit, 16)), StringBuilder::append)
            .toString()
            .getBytes(StandardCharsets.US_ASCII);

    private static final String DECISION = "{\"transaction_id\":\"%s\","
            + "\"source\":{\"topic\":\"transactions\",\"partition\":0,\"offset\":0},"
            + "\"log\":{\"partition\":0,\"offset\":0},\"ingested_at\":\"2026-01-01T00:00:00Z\","
            + "\"decided_at\":\"2026-01-01T00:00:00Z\",\"windows\":%d,\"fill\":\"";

    private TwoHops() {}

    /** What the hops need of the wire contract's {@code transaction}. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    record Payment(
            @JsonProperty("transaction_id") String transactionId,
            @JsonProperty("event_time") String eventTime,
            @JsonProperty("card_id") String cardId,
            @JsonProperty("merchant_id") String merchantId,
            @JsonProperty("amount") BigDecimal amount) {}

    /** What goes from hop to hop; {@code windows} is the number of transactions in the windows so far. */
    record Row(String cardId, String transactionId, String merchantId, long timeMs, long cents, int windows) {
        static Row of(Payment payment) {
            long timeMs = Instant.parse(payment.eventTime()).toEpochMilli();
            long cents = payment.amount().movePointRight(2).longValueExact();
            return new Row(payment.cardId(), payment.transactionId(), payment.merchantId(), timeMs, cents, 0);
        }

        Row counting(int more) {
            return new Row(cardId, transactionId, merchantId, timeMs, cents, windows + more);
        }

        byte[] toBytes() {
            String head = String.join("|", cardId, transactionId, merchantId, "" + timeMs, "" + cents, "" + windows, "");
            return filled(head, ROW_BYTES, "");
        }

        static Row fromBytes(byte[] bytes) {
            String[] at = new String(bytes, StandardCharsets.US_ASCII).split("\\|", 7);
            return new Row(at[0], at[1], at[2], Long.parseLong(at[3]), Long.parseLong(at[4]), Integer.parseInt(at[5]));
        }

        byte[] decision() {
            return filled(String.format(DECISION, transactionId, windows), DECISION_BYTES, "\"}");
        }

        byte[] features() {
            return filled(transactionId, FEATURES_BYTES, "");
        }
    }

    static byte[] filled(String head, int size, String tail) {
        byte[] found = Arrays.copyOf(head.getBytes(StandardCharsets.US_ASCII), size);
        int end = size - tail.length();
        int start = (head.hashCode() & Integer.MAX_VALUE) % (FILL.length - size);
        System.arraycopy(FILL, start, found, head.length(), end - head.length());
        System.arraycopy(tail.getBytes(StandardCharsets.US_ASCII), 0, found, end, tail.length());
        return found;
    }

    /** Counts a transaction in the windows of its key. */
    static final class Windows implements FixedKeyProcessor<String, Row, Row> {
        private final String store;
        private FixedKeyProcessorContext<String, Row> context;
        private KeyValueStore<String, FraudScoring.History> histories;

        Windows(String store) {
            this.store = store;
        }

        @Override
        public void init(FixedKeyProcessorContext<String, Row> context) {
            this.context = context;
            histories = context.getStateStore(store);
        }

        @Override
        public void process(FixedKeyRecord<String, Row> record) {
            Row row = record.value();
            FraudScoring.History known = histories.get(record.key());
            FraudScoring.History history = known == null ? FraudScoring.History.EMPTY : known;
            FraudScoring.Profile profile = history.profile(row.timeMs());
            histories.put(record.key(), history.with(row.timeMs(), row.cents()));
            int counted = profile.day().count() + profile.week().count() + profile.month().count();
            context.forward(record.withValue(row.counting(counted)));
        }
    }

    /** Does nothing: a hop without state. */
    static final class Nothing implements FixedKeyProcessor<String, Row, Row> {
        private FixedKeyProcessorContext<String, Row> context;

        @Override
        public void init(FixedKeyProcessorContext<String, Row> context) {
            this.context = context;
        }

        @Override
        public void process(FixedKeyRecord<String, Row> record) {
            context.forward(record);
        }
    }

    /** Makes the processor of a hop, and declares the store that it uses. */
    record Hop(String store, boolean hasWindows) implements FixedKeyProcessorSupplier<String, Row, Row> {
        @Override
        public FixedKeyProcessor<String, Row, Row> get() {
            return hasWindows ? new Windows(store) : new Nothing();
        }

        @Override
        public Set<StoreBuilder<?>> stores() {
            if (!hasWindows) {
                return Set.of();
            }
            return Set.of(Stores.keyValueStoreBuilder(
                            Stores.persistentKeyValueStore(store), Serdes.String(), FraudScoring.History.serde())
                    .withCachingEnabled());
        }
    }

    static Serde<Row> rows(Function<Row, byte[]> bytes) {
        return Serdes.serdeFrom((topic, row) -> bytes.apply(row), (topic, found) -> Row.fromBytes(found));
    }

    static Topology topology(String prefix, boolean hasWindows) {
        var builder = new StreamsBuilder();
        var keys = Serdes.String();
        var decided = builder.stream(
                        prefix + "transactions", Consumed.with(keys, FraudScoring.json(Payment.class)))
                .mapValues(Row::of)
                .processValues(new Hop("cards", hasWindows))
                .selectKey((card, row) -> row.merchantId())
                .repartition(Repartitioned.with(keys, rows(Row::toBytes)).withName("profiled"))
                .processValues(new Hop("merchants", hasWindows))
                .selectKey((merchant, row) -> row.cardId());
        decided.to(prefix + "decisions", Produced.with(keys, rows(Row::decision)));
        decided.to(prefix + "features", Produced.with(keys, rows(Row::features)));
        return builder.build();
    }

    /** Works until it is asked to stop (SIGTERM). Exit code 1: a thread failed. */
    public static void main(String[] arguments) throws InterruptedException {
        if (arguments.length != 5) {
            System.err.println("arguments: bootstrap-servers prefix scratch commit-interval-ms windows|nothing");
            System.exit(2);
        }
        Properties properties = FraudScoring.configuration(arguments[0], arguments[1] + "streams", arguments[2]);
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        properties.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, arguments[3]);
        var streams = new KafkaStreams(topology(arguments[1], arguments[4].equals("windows")), properties);
        var failed = new CountDownLatch(1);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            failed.countDown();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        failed.await();
        System.exit(1);
    }
}
