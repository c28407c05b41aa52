import com.fasterxml.jackson.annotation.JsonIgnoreProperties;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.fasterxml.jackson.databind.ObjectWriter;
import com.microsoft.ml.lightgbm.PredictionType;
import io.github.metarank.lightgbm4j.LGBMBooster;
import io.github.metarank.lightgbm4j.LGBMException;
import java.io.IOException;
import java.math.BigDecimal;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.Arrays;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.kafka.common.errors.SerializationException;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.FixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorSupplier;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/**
 * Job (a) of the benchmarks in Kafka Streams: a transaction in, its card's exact windows, two models, one decision out.
 *
 * <p>The DSL's sliding windows emit each window that a record changes, of one length; the job asks for one answer a
 * record, over three lengths. So this is a processor over a persistent store: each card's transactions of the last 30
 * days, in RocksDB behind the record cache, with a changelog topic. Delivery is at-least-once. Cache, commit interval,
 * RocksDB, producer and consumer are as they are by default. River's logistic regression is computed from its weights.
 */
public final class FraudScoring {
    static final long DAY_MS = 86_400_000L;
    static final String STORE = "histories";

    private static final ObjectMapper JSON = new ObjectMapper();

    private FraudScoring() {}

    /** What the job needs of the wire contract's {@code transaction}. */
    @JsonIgnoreProperties(ignoreUnknown = true)
    record Transaction(
            @JsonProperty("transaction_id") String transactionId,
            @JsonProperty("event_time") String eventTime,
            @JsonProperty("card_id") String cardId,
            @JsonProperty("amount") BigDecimal amount,
            @JsonProperty("mcc") String mcc,
            @JsonProperty("channel") String channel,
            @JsonProperty("country") String country) {

        long timeMs() {
            return Instant.parse(eventTime).toEpochMilli();
        }

        long cents() {
            return amount.movePointRight(2).longValueExact();
        }
    }

    record Decision(
            @JsonProperty("transaction_id") String transactionId,
            @JsonProperty("card_id") String cardId,
            @JsonProperty("score") double score,
            @JsonProperty("lightgbm") double lightgbm,
            @JsonProperty("river") double river,
            @JsonProperty("count_1d") int count1d,
            @JsonProperty("count_7d") int count7d,
            @JsonProperty("count_30d") int count30d,
            @JsonProperty("mean_1d") double mean1d,
            @JsonProperty("mean_7d") double mean7d,
            @JsonProperty("mean_30d") double mean30d) {}

    /** Number of transactions in a window, and their mean amount in major units. */
    record Window(int count, double mean) {}

    /** The windows of a transaction. */
    record Profile(Window day, Window week, Window month) {}

    /** A card's transactions of the last 30 days in order of time; the input is in that order. */
    record History(long[] timesMs, long[] cents) {
        static final History EMPTY = new History(new long[0], new long[0]);

        Profile profile(long nowMs) {
            return new Profile(window(1, nowMs), window(7, nowMs), window(30, nowMs));
        }

        /** The window of {@code days} that ends with, and includes, {@code nowMs}. */
        private Window window(int days, long nowMs) {
            long sum = 0;
            int first = timesMs.length;
            while (first > 0 && timesMs[first - 1] > nowMs - days * DAY_MS) {
                sum += cents[--first];
            }
            int count = timesMs.length - first;
            return new Window(count, count == 0 ? 0.0 : sum / (100.0 * count));
        }

        /** This history with one more transaction, and without those that no later one can find in a window. */
        History with(long timeMs, long amountCents) {
            int expired = 0;
            while (expired < timesMs.length && timesMs[expired] <= timeMs - 30 * DAY_MS) {
                expired++;
            }
            int kept = timesMs.length - expired;
            long[] newTimes = Arrays.copyOfRange(timesMs, expired, timesMs.length + 1);
            long[] newCents = Arrays.copyOfRange(cents, expired, timesMs.length + 1);
            newTimes[kept] = timeMs;
            newCents[kept] = amountCents;
            return new History(newTimes, newCents);
        }

        byte[] toBytes() {
            ByteBuffer buffer = ByteBuffer.allocate(2 * Long.BYTES * timesMs.length);
            buffer.asLongBuffer().put(timesMs).put(cents);
            return buffer.array();
        }

        static History fromBytes(byte[] bytes) {
            int count = bytes.length / (2 * Long.BYTES);
            var history = new History(new long[count], new long[count]);
            ByteBuffer.wrap(bytes).asLongBuffer().get(history.timesMs).get(history.cents);
            return history;
        }

        static Serde<History> serde() {
            return Serdes.serdeFrom(
                    (topic, history) -> history == null ? null : history.toBytes(),
                    (topic, bytes) -> bytes == null ? null : fromBytes(bytes));
        }
    }

    /** Both models, from the files of the job. */
    static final class Models implements AutoCloseable {
        private final LGBMBooster lightgbm;
        private final double intercept;
        private final double[] weights;

        Models(Path workdir) {
            try {
                JsonNode names = JSON.readTree(workdir.resolve("job.json").toFile()).get("inputs");
                JsonNode river = JSON.readTree(workdir.resolve("river.json").toFile());
                intercept = river.get("intercept").doubleValue();
                weights = new double[names.size()];
                for (int i = 0; i < weights.length; i++) {
                    weights[i] = river.get("weights").get(names.get(i).textValue()).doubleValue();
                }
                lightgbm = LGBMBooster.loadModelFromString(Files.readString(workdir.resolve("model.txt")));
            } catch (IOException | LGBMException error) {
                throw new IllegalStateException("cannot load the models of the job from " + workdir, error);
            }
        }

        Decision decide(Transaction transaction, long timeMs, long cents, Profile profile) {
            Window day = profile.day();
            Window week = profile.week();
            Window month = profile.month();
            double[] inputs = inputs(transaction, timeMs, cents, day, week, month);
            double trees = lightgbm(inputs);
            double river = river(inputs);
            return new Decision(
                    transaction.transactionId(), transaction.cardId(), (trees + river) / 2, trees, river,
                    day.count(), week.count(), month.count(), day.mean(), week.mean(), month.mean());
        }

        private double lightgbm(double[] inputs) {
            try {
                return lightgbm.predictForMatSingleRow(inputs, PredictionType.C_API_PREDICT_NORMAL);
            } catch (LGBMException error) {
                throw new IllegalStateException("LightGBM cannot predict", error);
            }
        }

        private double river(double[] inputs) {
            double logit = intercept;
            for (int i = 0; i < weights.length; i++) {
                logit += weights[i] * inputs[i];
            }
            return 1 / (1 + Math.exp(-logit));
        }

        /** The models' inputs, in the order of {@code inputs} in {@code job.json}. */
        private static double[] inputs(
                Transaction transaction, long timeMs, long cents, Window day, Window week, Window month) {
            double amount = cents / 100.0;
            double root = Math.sqrt(amount);
            double hour = timeMs % DAY_MS / 3_600_000.0;
            double fromNoon = hour - 12;
            long weekday = (timeMs / DAY_MS + 3) % 7;
            double night = hour < 6 ? 1 : 0;
            double online = transaction.channel().equals("online") ? 1 : 0;
            return new double[] {
                amount,
                root,
                Math.sqrt(root),
                cents % 100,
                hour,
                Math.abs(fromNoon),
                fromNoon * fromNoon,
                weekday,
                night,
                weekday >= 5 ? 1 : 0,
                day.count(),
                week.count(),
                month.count(),
                day.mean(),
                week.mean(),
                month.mean(),
                ratio(amount, day.mean()),
                ratio(amount, week.mean()),
                ratio(amount, month.mean()),
                amount - day.mean(),
                amount - week.mean(),
                amount - month.mean(),
                ratio(day.count(), week.count()),
                ratio(week.count(), month.count()),
                Integer.parseInt(transaction.mcc()),
                online,
                transaction.country().equals("FR") ? 0 : 1,
                amount * online,
                amount * night,
                Math.sqrt(month.mean()),
            };
        }

        private static double ratio(double of, double to) {
            return to > 0 ? of / to : 0;
        }

        @Override
        public void close() {
            try {
                lightgbm.close();
            } catch (LGBMException error) {
                throw new IllegalStateException("LightGBM cannot release its model", error);
            }
        }
    }

    /** Decides one transaction after the other, with the store of its partition. */
    static final class Scorer implements FixedKeyProcessor<String, Transaction, Decision> {
        private final Path workdir;
        private final Runnable decided;
        private FixedKeyProcessorContext<String, Decision> context;
        private KeyValueStore<String, History> histories;
        private Models models;

        Scorer(Path workdir, Runnable decided) {
            this.workdir = workdir;
            this.decided = decided;
        }

        @Override
        public void init(FixedKeyProcessorContext<String, Decision> context) {
            this.context = context;
            histories = context.getStateStore(STORE);
            // Models of its own: LightGBM lets one thread at a time predict single rows with a booster.
            models = new Models(workdir);
        }

        @Override
        public void process(FixedKeyRecord<String, Transaction> record) {
            Transaction transaction = record.value();
            long timeMs = transaction.timeMs();
            long cents = transaction.cents();
            History known = histories.get(record.key());
            History history = known == null ? History.EMPTY : known;
            Decision decision = models.decide(transaction, timeMs, cents, history.profile(timeMs));
            histories.put(record.key(), history.with(timeMs, cents));
            context.forward(record.withValue(decision));
            decided.run();
        }

        @Override
        public void close() {
            models.close();
        }
    }

    /** Makes a scorer for each partition, and declares the store that it uses. */
    record ScorerSupplier(Path workdir, Runnable decided)
            implements FixedKeyProcessorSupplier<String, Transaction, Decision> {
        @Override
        public FixedKeyProcessor<String, Transaction, Decision> get() {
            return new Scorer(workdir, decided);
        }

        @Override
        public Set<StoreBuilder<?>> stores() {
            return Set.of(Stores.keyValueStoreBuilder(
                            Stores.persistentKeyValueStore(STORE), Serdes.String(), History.serde())
                    .withCachingEnabled());
        }
    }

    static <T> Serde<T> json(Class<T> type) {
        ObjectReader reader = JSON.readerFor(type);
        ObjectWriter writer = JSON.writerFor(type);
        return Serdes.serdeFrom(
                (topic, value) -> {
                    try {
                        return writer.writeValueAsBytes(value);
                    } catch (IOException error) {
                        throw new SerializationException("cannot encode a record for " + topic, error);
                    }
                },
                (topic, bytes) -> {
                    try {
                        return reader.readValue(bytes);
                    } catch (IOException error) {
                        throw new SerializationException("cannot decode a record of " + topic, error);
                    }
                });
    }

    static Topology topology(String transactions, String decisions, Path workdir, Runnable decided) {
        var builder = new StreamsBuilder();
        builder.stream(transactions, Consumed.with(Serdes.String(), json(Transaction.class)))
                .processValues(new ScorerSupplier(workdir, decided))
                .to(decisions, Produced.with(Serdes.String(), json(Decision.class)));
        return builder.build();
    }

    static Properties configuration(String bootstrapServers, String group, String scratch) {
        var properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, group);
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrapServers);
        properties.put(StreamsConfig.STATE_DIR_CONFIG, scratch);
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
        // By default one thread does everything. The documentation's way to use a machine's cores is one for each, and
        // the partitions of the input are shared out among them.
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Runtime.getRuntime().availableProcessors());
        return properties;
    }

    /**
     * Decides transactions until it is asked to stop (SIGTERM), or until it has decided as many as its last argument
     * says. Exit code 1: a thread failed, or the broker did not confirm every decision.
     */
    public static void main(String[] arguments) throws InterruptedException {
        if (arguments.length < 6 || arguments.length > 7) {
            System.err.println("arguments: bootstrap-servers input output group workdir scratch [records]");
            System.exit(2);
        }
        var left = new AtomicLong(arguments.length == 7 ? Long.parseLong(arguments[6]) : Long.MAX_VALUE);
        var ended = new CountDownLatch(1);
        var failed = new AtomicBoolean();
        Runnable decided = () -> {
            if (left.decrementAndGet() == 0) {
                ended.countDown();
            }
        };
        var topology = topology(arguments[1], arguments[2], Path.of(arguments[4]), decided);
        var streams = new KafkaStreams(topology, configuration(arguments[0], arguments[3], arguments[5]));
        streams.setUncaughtExceptionHandler(error -> {
            failed.set(true);
            ended.countDown();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        ended.await();
        // Closing sends what is buffered, waits until the broker has it, and commits.
        boolean closed = streams.close(Duration.ofSeconds(60));
        System.exit(closed && !failed.get() ? 0 : 1);
    }
}
