import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.reflect.InvocationHandler;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.net.JarURLConnection;
import java.net.URL;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Enumeration;
import java.util.HashSet;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.atomic.AtomicReference;
import java.util.jar.JarEntry;

import akka.actor.ActorRef;
import akka.actor.ActorSelection;
import akka.actor.ActorSystem;
import akka.actor.Props;
import com.typesafe.config.Config;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.core.LogEvent;
import org.apache.logging.log4j.core.LoggerContext;
import org.apache.logging.log4j.core.appender.AbstractAppender;
import org.apache.spark.SparkConf;
import org.apache.spark.SparkContext;
import org.apache.spark.SparkStageInfo;
import org.apache.spark.scheduler.ActiveJob;
import org.apache.spark.sql.SparkSession;
import org.apache.spark.status.api.v1.ExecutorSummary;
import org.apache.toree.boot.CommandLineOptions;
import org.apache.toree.boot.KernelBootstrap;
import org.apache.toree.boot.layer.InterpreterManager;
import org.apache.toree.boot.layer.StandardBareInitialization;
import org.apache.toree.boot.layer.StandardComponentInitialization;
import org.apache.toree.boot.layer.StandardHandlerInitialization;
import org.apache.toree.boot.layer.StandardHookInitialization;
import org.apache.toree.comm.CommManager;
import org.apache.toree.comm.CommStorage;
import org.apache.toree.global.ExecuteRequestState;
import org.apache.toree.global.ExecutionCounter;
import org.apache.toree.interpreter.ExecuteError;
import org.apache.toree.interpreter.Interpreter;
import org.apache.toree.kernel.api.FactoryMethods;
import org.apache.toree.kernel.api.Kernel;
import org.apache.toree.kernel.api.KernelOptions;
import org.apache.toree.kernel.interpreter.scala.ScalaInterpreter;
import org.apache.toree.kernel.protocol.v5.HeaderBuilder;
import org.apache.toree.kernel.protocol.v5.KMBuilder;
import org.apache.toree.kernel.protocol.v5.KernelMessage;
import org.apache.toree.kernel.protocol.v5.content.ExecuteRequest;
import org.apache.toree.kernel.protocol.v5.handler.BaseHandler;
import org.apache.toree.kernel.protocol.v5.handler.ExecuteRequestHandler;
import org.apache.toree.kernel.protocol.v5.kernel.ActorLoader;
import org.apache.toree.kernel.protocol.v5.stream.KernelOutputStream;
import org.apache.toree.plugins.Plugin;
import org.apache.toree.plugins.PluginManager;
import org.apache.toree.plugins.dependencies.Dependency;
import org.apache.toree.plugins.dependencies.DependencyManager;
import org.apache.toree.utils.TaskManager;
import sun.misc.Signal;
import sun.misc.SignalHandler;

/**
 * Runs Toree with a start and an interrupt of our own, the latter on the signal that the first argument names.
 *
 * Toree answers nothing before it has searched its jar for magics, class by class, and its interpreter has compiled the first
 * lines: that is more than half of its start. Here it answers what needs no interpreter before, and cells wait for that.
 *
 * Toree's own interrupt makes a Spark session where there is none yet, only to cancel its jobs; disturbs the next cell where none is
 * running; leaves the cancelled jobs' tasks on the executors until they end by themselves; and, on SIGINT, ends the kernel when
 * it comes twice within three seconds. Nor does it tell Spark where a notebook's own classes are, so that no results of such a
 * class could be collected. And whatever Toree throws where it has taken a cell leaves that cell, and all that come after it,
 * without an answer, as does a wait for a session on the threads that answers are made on.
 *
 * Read by Janino, which every Spark has and which compiles this at the kernel's start: no lambdas, no jar to build, nothing to
 * install.
 *
 * One file, and not named after its class: Janino's SimpleCompiler reads a single compilation unit, whatever its name, and gets
 * the name of the class to run as an argument of its own (`command.py`).
 */
public final class SparkScalaKernel implements SignalHandler, Runnable {
    private static final String INTERRUPT_ON_CANCEL = "spark.job.interruptOnCancel";
    /** Milliseconds that a cell has to end by its jobs' cancellation before its thread is interrupted. */
    private static final long JOBS_GRACE = 1000;
    private static final long LOOK = 10;
    /** Milliseconds between two looks for a new session: its first results take longer. */
    private static final long SESSION_LOOK = 100;

    /** Milliseconds that an interrupted cell is followed for: jobs that it begins only now, a compiler that isn't done yet. */
    private static final long FOLLOWED = 5000;
    /** Milliseconds that an interrupted cell's answer may be compiled for. */
    private static final long ANSWERED = 60000;
    /** Milliseconds between two looks meanwhile. */
    private static final long AGAIN_LOOK = 100;
    /** Milliseconds after which a cell that is interrupted may still wait for a session in Spark's own locks. */
    private static final long LOCKS_GRACE = 1000;
    /** How the classes of what compiles begin; the interpreter's own, which read a result, are others. */
    private static final String COMPILER = "scala.tools.nsc.Global";
    /** Milliseconds between two looks for tasks, and without a single one under way until that is said. */
    private static final long TASKS_LOOK = 1000;
    private static final long TASKS_IDLE = 10000;

    private final Late late = new Late();

    public static void main(String[] arguments) {
        allowAll();
        SparkScalaKernel kernel = new SparkScalaKernel();
        Signal.handle(new Signal(arguments[0]), kernel);
        Thread results = new Thread(kernel, "notebook-classes");
        results.setDaemon(true);
        results.start();
        Thread words = new Thread(new Words(kernel), "session-words");
        words.setDaemon(true);
        words.start();
        List torees = Arrays.asList(arguments).subList(1, arguments.length);
        CommandLineOptions options = new CommandLineOptions(scala.collection.JavaConverters.asScalaBuffer(torees).toList());
        if (options.help() || options.version()) {
            org.apache.toree.Main.main((String[]) torees.toArray(new String[0]));
            return;
        }
        new Start(options.toConfig(), kernel.late).initialize().waitForTermination().shutdown();
    }

    /**
     * Have Java's own policy allow what a JVM without a security manager does.
     *
     * Toree has a manager for exits alone, which allows everything else. But where there is one, Derby asks the policy itself, which
     * allows nothing: no cell could use Hive without a metastore elsewhere.
     */
    private static void allowAll() {
        try {
            java.security.Policy.setPolicy(new java.security.Policy() {
                public boolean implies(java.security.ProtectionDomain domain, java.security.Permission permission) {
                    return true;
                }
            });
        } catch (UnsupportedOperationException error) { // a Java that has no security managers any more
            return;
        }
    }

    /** Called by the JVM in a thread of its own for each signal. */
    public void handle(Signal signal) {
        try {
            // Whose interrupt it is, is known now: it may have to wait for one before it, and another cell runs then.
            Object cell = late.interrupted();
            if (cell != null) {
                end(cell);
            }
        } catch (Throwable error) { // whatever a release of Toree or Spark does otherwise, an interrupt must not end the kernel
            System.err.println("interrupt: " + error);
        }
    }

    /** End a cell that runs; one at a time, a second interrupt finds the first one done. */
    synchronized void end(Object cell) throws Exception { // not private: Janino would drop `synchronized`
        Interpreter interpreter = late.interpreter();
        if (!late.runs(cell)) {
            return;
        }
        TaskManager cells = tasks(interpreter);
        if (cells == null) {
            interpreter.interrupt();
            return;
        }
        if (cancelJobs(cell)) {
            long grace = System.currentTimeMillis() + JOBS_GRACE;
            while (System.currentTimeMillis() < grace) {
                if (!late.runs(cell)) {
                    return;
                }
                Thread.sleep(LOOK);
            }
        }
        long began = System.currentTimeMillis();
        boolean interrupted = interruptThreads(cell, false);
        while (late.runs(cell) && System.currentTimeMillis() < began + FOLLOWED) {
            Thread.sleep(AGAIN_LOOK);
            if (!late.runs(cell)) {
                return;
            }
            // Its thread may not have it yet, or be in the compiler.
            interrupted = interrupted || interruptThreads(cell, false);
            // A job that was still being planned, or comes next in a loop of the JVM's, is not the next cell's yet.
            cancelJobs(cell);
            if (System.currentTimeMillis() > began + LOCKS_GRACE && late.sessions != null && isBlocked()) {
                late.sessions.giveUp(); // a builder of the cell's own waits in a lock for it, which nothing interrupts
            }
        }
        if (!late.runs(cell)) {
            return;
        }
        if (!interrupted) {
            interruptThreads(cell, true);
        }
        // Its task is over, and what makes an answer of it has failed, or is code of the user's: a result's own toString.
        while (!cells.isExecutingTask() && System.currentTimeMillis() < began + ANSWERED && !late.release(cell)) {
            Thread.sleep(AGAIN_LOOK);
        }
    }

    /** For as long as the kernel lives: has each new session's driver find the classes that cells define. */
    public void run() {
        SparkContext known = null;
        while (true) {
            try {
                Thread.sleep(SESSION_LOOK);
                SparkContext active = active();
                if (active == null || active == known || late.interpreter() == null) {
                    continue;
                }
                known = active;
                ClassLoader classes = new CellClasses(late.interpreter());
                known.env().serializer().setDefaultClassLoader(classes);
                known.env().closureSerializer().setDefaultClassLoader(classes);
            } catch (Throwable error) { // another release of Toree or Spark: collecting such results fails then, as it does in Toree
                System.err.println("classes of the notebook: " + error);
                return;
            }
        }
    }

    /** Returns what shows text as stderr of a cell. Toree's own `err` stays with the cell that a thread has first used it in. */
    private PrintStream stderr(Object cell) throws Exception {
        Kernel kernel = late.kernel;
        Object stream = kernel.factory((KernelMessage) cell, kernel.factory$default$2()).newKernelOutputStream("stderr", false);
        return new PrintStream((java.io.OutputStream) stream, true, "UTF-8");
    }

    /** Returns what runs the cells; null for an interpreter that isn't Scala's, or another release's. */
    private static TaskManager tasks(Interpreter interpreter) {
        try {
            return (TaskManager) interpreter.getClass().getMethod("taskManager", new Class[0]).invoke(interpreter, new Object[0]);
        } catch (Exception error) { // no such method there
            return null;
        }
    }

    /**
     * Cancels all jobs of the session if the cell runs still, and returns whether there were any.
     *
     * RDD jobs bring no wish to have their tasks interrupted; without it, a sleeping task keeps its core from the next job.
     */
    private boolean cancelJobs(Object cell) throws Exception {
        synchronized (late) { // the cell can't end, and the next one not begin, until its jobs are found
            return late.runs(cell) && cancelJobs(active());
        }
    }

    private static boolean cancelJobs(SparkContext context) throws Exception {
        if (context == null) {
            return false;
        }
        boolean any = false;
        // Of the scheduler's own thread, which may be adding to it: a job missed here is cancelled all the same.
        Iterator jobs = scala.collection.JavaConverters.asJavaIterator(context.dagScheduler().activeJobs().toList().iterator());
        while (jobs.hasNext()) {
            ActiveJob job = (ActiveJob) jobs.next();
            if (job != null && job.properties() != null) {
                job.properties().setProperty(INTERRUPT_ON_CANCEL, "true");
                any = true;
            }
        }
        context.cancelAllJobs();
        return any;
    }

    /** Returns the session's context, or null. Not by Spark's own getActive, which waits while a session is being made. */
    private static SparkContext active() throws Exception {
        java.lang.reflect.Field[] fields = org.apache.spark.SparkContext$.class.getDeclaredFields();
        for (int i = 0; i < fields.length; i++) {
            if (fields[i].getType() == AtomicReference.class) {
                fields[i].setAccessible(true);
                return (SparkContext) ((AtomicReference) fields[i].get(org.apache.spark.SparkContext$.MODULE$)).get();
            }
        }
        return null;
    }

    /**
     * Interrupt the threads that run code of the cell's own, or all of cells if *anywhere*; returns whether there were any, and
     * the cell runs still.
     *
     * An interrupt closes the files that the compiler reads and writes under its hands, and it keeps what it makes of that.
     */
    private boolean interruptThreads(Object cell, boolean anywhere) {
        boolean any = false;
        synchronized (late) { // the cell can't end meanwhile: its thread may be the next one's, and begins that without an interrupt
            Iterator threads = late.runs(cell) ? cellThreads().iterator() : new ArrayList().iterator();
            while (threads.hasNext()) {
                Thread thread = (Thread) threads.next();
                if (anywhere || isIn(thread, "$line")) { // as the interpreter names the classes that it makes of cells
                    thread.interrupt();
                    any = true;
                }
            }
        }
        return any;
    }

    /** Whether a cell waits for a lock. */
    private boolean isBlocked() {
        Iterator threads = cellThreads().iterator();
        while (threads.hasNext()) {
            if (((Thread) threads.next()).getState() == Thread.State.BLOCKED) {
                return true;
            }
        }
        return false;
    }

    /** Returns the context that is being made, or whose making was broken off; null if there is none. */
    private static SparkContext beingMade() throws Exception {
        java.lang.reflect.Field field = org.apache.spark.SparkContext$.class.getDeclaredField("contextBeingConstructed");
        field.setAccessible(true);
        scala.Option being = (scala.Option) field.get(org.apache.spark.SparkContext$.MODULE$);
        return being.isEmpty() ? null : (SparkContext) being.get();
    }

    private static List cellThreads() {
        Thread[] threads = new Thread[4 * Thread.activeCount() + 64];
        ThreadGroup root = Thread.currentThread().getThreadGroup();
        while (root.getParent() != null) {
            root = root.getParent();
        }
        List found = new ArrayList();
        int count = root.enumerate(threads, true);
        for (int i = 0; i < count; i++) {
            if (isIn(threads[i], "org.apache.toree.utils.TaskManager") && isIn(threads[i], "org.apache.toree.kernel.interpreter.")) {
                found.add(threads[i]);
            }
        }
        return found;
    }

    /** Whether a thread is in code of a class whose name begins like that. */
    private static boolean isIn(Thread thread, String name) {
        StackTraceElement[] frames = thread.getStackTrace();
        for (int i = 0; i < frames.length; i++) {
            if (frames[i].getClassName().startsWith(name)) {
                return true;
            }
        }
        return false;
    }

    /** Toree's start, but for the order of its parts: the interpreter comes last, in a thread of its own. */
    public static final class Start extends KernelBootstrap
        implements
            StandardBareInitialization,
            StandardComponentInitialization,
            StandardHandlerInitialization,
            StandardHookInitialization {
        /** Where in Toree's jar its own plugins are: the magics, and what they want converted. */
        private static final String[] PLUGINS = {"org/apache/toree/magic/", "org/apache/toree/utils/"};

        private final Late late;

        Start(Config config, Late late) {
            super(config);
            this.late = late;
        }

        /** As Toree's, which begins the interpreter here and goes on when it is there. */
        public scala.Tuple9 initializeComponents(Config config, ActorLoader actorLoader) {
            try {
                scala.Tuple3 comms = (scala.Tuple3) torees("initializeCommObjects", new Object[] {actorLoader});
                InterpreterManager interpreters = InterpreterManager.apply(config);
                Object downloader = torees("initializeDependencyDownloader", new Object[] {config});
                Object plugins = torees("createPluginManager", new Object[] {config, interpreters, downloader});
                Object[] parts = {config, actorLoader, interpreters, comms._3(), plugins};
                Kernel theirs = (Kernel) torees("initializeKernel", parts);
                Kernel kernel = ours(theirs, config, actorLoader, interpreters, comms._3(), plugins);
                // A front end asks which comms there are; of no target at all, Toree can't say that there are none.
                ((CommStorage) comms._1()).setTargetCommIds("", scala.collection.immutable.Vector$.MODULE$.empty());
                loadPlugins(config, (PluginManager) plugins);
                initializeSparkContext(config, kernel);
                Interpreter proxy = late.begin(interpreters, kernel);
                return new scala.Tuple9(
                    comms._1(), comms._2(), comms._3(), proxy, kernel, downloader, kernel.magics(), plugins, initializeResponseMap());
            } catch (RuntimeException error) {
                throw error;
            } catch (Exception error) { // a method of Toree's that is not there, or failed
                throw new IllegalStateException(error);
            }
        }

        /** Return our own kernel, put in the place that Toree's has among what its magics are given. */
        private Kernel ours(
            Kernel theirs, Config config, ActorLoader loader, InterpreterManager interpreters, Object comms, Object plugins
        ) {
            Kernel kernel = new OneSession(config, loader, interpreters, (CommManager) comms, (PluginManager) plugins);
            late.sessions = ((OneSession) kernel).sessions;
            DependencyManager known = ((PluginManager) plugins).dependencyManager();
            Iterator all = scala.collection.JavaConverters.asJavaIterator(known.toSeq().toList().iterator());
            while (all.hasNext()) {
                Dependency dependency = (Dependency) all.next();
                if (dependency.value() == theirs) {
                    known.remove(dependency.name());
                    known.add(new Dependency(dependency.name(), dependency.type(), kernel));
                }
            }
            return kernel;
        }

        public ActorLoader createActorLoader(ActorSystem system) {
            return new Ways(system);
        }

        /** As Toree's, and what answers the messages that Toree leaves unanswered. */
        public void initializeHandlers(
            ActorSystem system,
            ActorLoader loader,
            Kernel kernel,
            Interpreter interpreter,
            PluginManager plugins,
            org.apache.toree.magic.MagicManager magics,
            org.apache.toree.comm.CommRegistrar registrar,
            CommStorage comms,
            scala.collection.mutable.Map responses
        ) {
            Object[] all = {this, system, loader, kernel, interpreter, plugins, magics, registrar, comms, responses};
            try {
                Method[] methods = StandardHandlerInitialization.class.getMethods();
                for (int i = 0; i < methods.length; i++) {
                    if (methods[i].getName().equals("initializeHandlers$")) { // a trait's super call, which Java has no word for
                        methods[i].invoke(null, all);
                    }
                }
            } catch (Exception error) { // another release of Toree
                throw new IllegalStateException(error);
            }
            List alone = Arrays.asList(new Object[] {loader});
            system.actorOf(actor(Unanswered.class, alone), "inspect_request");
            system.actorOf(actor(Unanswered.class, alone), "history_request");
            system.actorOf(actor(Cells.class, Arrays.asList(new Object[] {loader, kernel})), Ways.CELLS);
        }

        private static Props actor(Class type, List arguments) {
            return Props.apply(type, scala.collection.JavaConverters.asScalaBuffer(arguments).toList());
        }

        /** None: Toree's interrupts are not wanted, neither on SIGINT nor on another signal. */
        public void initializeHooks(Config config, Interpreter interpreter) {
        }

        private Object torees(String name, Object[] arguments) throws Exception {
            Method[] methods = StandardComponentInitialization.class.getDeclaredMethods();
            for (int i = 0; i < methods.length; i++) {
                if (methods[i].getName().equals(name)) {
                    methods[i].setAccessible(true);
                    return methods[i].invoke(this, arguments);
                }
            }
            throw new NoSuchMethodException(name);
        }

        /** As Toree's, which reads 13,000 classes to find these; it is still what finds those of other jars. */
        private void loadPlugins(Config config, PluginManager manager) throws Exception {
            if (!config.getStringList("magic_urls").isEmpty() || othersOnClassPath()) {
                torees("initializePlugins", new Object[] {config, manager});
                return;
            }
            ClassLoader loader = PluginManager.class.getClassLoader();
            List found = new ArrayList();
            URL ofPlugin = loader.getResource(Plugin.class.getName().replace('.', '/') + ".class");
            Enumeration entries = ((JarURLConnection) ofPlugin.openConnection()).getJarFile().entries();
            while (entries.hasMoreElements()) {
                String entry = ((JarEntry) entries.nextElement()).getName();
                if (!isCandidate(entry)) {
                    continue;
                }
                Class plugin = loader.loadClass(entry.substring(0, entry.length() - ".class".length()).replace('/', '.'));
                if (Plugin.class.isAssignableFrom(plugin) && !Modifier.isAbstract(plugin.getModifiers())) {
                    scala.util.Try loaded = manager.loadPlugin(plugin.getName(), plugin);
                    if (loaded.isSuccess()) {
                        found.add(loaded.get());
                    }
                }
            }
            manager.initializePlugins(
                scala.collection.JavaConverters.asScalaBuffer(found).toList(),
                org.apache.toree.plugins.dependencies.DependencyManager.Empty());
        }

        /** Whether Toree would search more than its own jar: what has its name in its path. */
        private static boolean othersOnClassPath() {
            String own = new java.io.File(PluginManager.class.getProtectionDomain().getCodeSource().getLocation().getPath()).getPath();
            String[] entries = System.getProperty("java.class.path").split(java.io.File.pathSeparator);
            for (int i = 0; i < entries.length; i++) {
                String path = new java.io.File(entries[i]).getAbsolutePath();
                if (path.toLowerCase().contains("toree") && !path.equals(own)) {
                    return true;
                }
            }
            return false;
        }

        private static boolean isCandidate(String entry) {
            for (int i = 0; i < PLUGINS.length; i++) {
                if (entry.startsWith(PLUGINS[i])) {
                    return entry.endsWith(".class") && entry.indexOf('$') < 0;
                }
            }
            return false;
        }
    }

    /** Which way messages go to their actors. */
    private static final class Ways implements ActorLoader {
        static final String CELLS = "cells";
        /**
         * What goes to the front end's screen. Toree has an actor for each type of message, which is run when it is its turn: so what
         * came before the `idle` that ends a cell is overtaken by that, and a front end drops it. One actor keeps the order.
         */
        private static final Set SHOWN = new HashSet(Arrays.asList(new Object[] {
            "clear_output", "display_data", "error", "execute_input", "execute_result", "status", "stream",
            "outgoing_comm_open", "outgoing_comm_msg", "outgoing_comm_close"}));
        private static final Set ANSWERS = new HashSet(Arrays.asList(new Object[] {"inspect_reply", "history_reply"}));

        private final ActorSystem system;

        Ways(ActorSystem system) {
            this.system = system;
        }

        public ActorSelection load(scala.Enumeration.Value kind) {
            String name = kind.toString();
            if (SHOWN.contains(name)) {
                name = "io_pub";
            } else if (ANSWERS.contains(name)) {
                name = "shell";
            } else if (name.equals("execute_request")) {
                name = CELLS;
            }
            return system.actorSelection("/user/" + name);
        }

        /** Answer a request. */
        void answer(KernelMessage request, String type, String content) {
            scala.collection.immutable.Map none = scala.collection.immutable.Map$.MODULE$.empty();
            Object answer = new KernelMessage(
                request.ids(), "", HeaderBuilder.create(type, ""), request.header(), none, content);
            system.actorSelection("/user/kernel_message_relay").tell(answer, ActorRef.noSender());
        }

        static scala.concurrent.Future done() {
            return scala.concurrent.Future$.MODULE$.successful(null);
        }
    }

    /** Answers what Toree knows the names of, and nothing else: a front end would wait for it. */
    public static final class Unanswered extends BaseHandler {
        private final Ways ways;

        public Unanswered(ActorLoader ways) {
            super(ways);
            this.ways = (Ways) ways;
        }

        public scala.concurrent.Future process(KernelMessage request) {
            if (request.header().msg_type().equals("inspect_request")) {
                String nothing = "{\"status\": \"ok\", \"found\": false, \"data\": {}, \"metadata\": {}}";
                ways.answer(request, "inspect_reply", nothing);
            } else {
                ways.answer(request, "history_reply", "{\"status\": \"ok\", \"history\": []}");
            }
            return Ways.done();
        }
    }

    /** As Toree's, but for a cell without anything in it, of which Toree says ClassCastException. */
    public static final class Cells extends ExecuteRequestHandler {
        private final Ways ways;

        public Cells(ActorLoader ways, Kernel kernel) {
            super(ways, kernel);
            this.ways = (Ways) ways;
        }

        public scala.concurrent.Future process(KernelMessage request) {
            if (!isEmpty(request)) {
                return super.process(request);
            }
            int number = ExecutionCounter.incr(request.header().session());
            String rest = ", \"payload\": [], \"user_expressions\": {}}";
            ways.answer(request, "execute_reply", "{\"status\": \"ok\", \"execution_count\": " + number + rest);
            return Ways.done();
        }

        private static boolean isEmpty(KernelMessage request) {
            try {
                Object content = play.api.libs.json.Json.parse(request.contentString()).as(ExecuteRequest.executeRequestReads());
                return ((ExecuteRequest) content).code().trim().isEmpty();
            } catch (RuntimeException error) { // no such message: Toree says what is wrong with it
                return false;
            }
        }
    }

    /** Toree's kernel, but for its sessions and what becomes of output. */
    public static final class OneSession extends Kernel {
        final Sessions sessions = new Sessions(this);
        private final Config settings;
        private final ActorLoader ways;

        OneSession(
            Config config, ActorLoader loader, InterpreterManager interpreters, CommManager comms, PluginManager plugins
        ) {
            super(config, loader, interpreters, comms, plugins);
            settings = config;
            ways = loader;
        }

        public FactoryMethods factory(KernelMessage parent, KMBuilder builder) {
            return new Outputs(settings, ways, parent, builder);
        }

        /** What `spark`, `sc`, `sqlContext` and the magics come to. */
        public SparkSession sparkSession() {
            return sessions.session();
        }
    }

    /** What makes the streams of a cell: as Toree's, with outputs of our own. */
    public static final class Outputs extends FactoryMethods {
        private final ActorLoader ways;

        Outputs(Config config, ActorLoader ways, KernelMessage parent, KMBuilder builder) {
            super(config, ways, parent, builder);
            this.ways = ways;
        }

        public java.io.OutputStream newKernelOutputStream(String kind, boolean empty) {
            return new Output(ways, kmBuilder(), kind);
        }
    }

    /**
     * What a cell prints, whole. Toree sends what is there every 100 ms, and drops what is blank then: a line's end that comes just
     * after its line, and a `println()` always. It also cuts a character of several bytes in two, and two threads may send in either order.
     */
    public static final class Output extends KernelOutputStream {
        /** How often the rest of a character is waited for, before what is there of it is sent: about two seconds. */
        private static final int PATIENCE = 20;
        private boolean any;
        /** Bytes of a character that are still to come, and how often they have been waited for. */
        private int open;
        private int waited;

        Output(ActorLoader ways, KMBuilder builder, String kind) {
            super(ways, builder, org.apache.toree.global.ScheduledTaskManager.instance(), kind, true);
        }

        public synchronized void write(int value) {
            int octet = value & 0xff;
            if (octet < 0x80 || octet >= 0xf8) {
                open = 0;
            } else if (octet >= 0xc0) {
                open = octet >= 0xf0 ? 3 : octet >= 0xe0 ? 2 : 1;
            } else {
                open = Math.max(open - 1, 0);
            }
            any = true;
            waited = 0;
            super.write(value);
        }

        public synchronized void flush() {
            if (!any || open > 0 && waited < PATIENCE) {
                waited++;
                return;
            }
            any = false;
            open = 0;
            super.flush();
        }
    }

    /**
     * At most one session under way for the whole kernel, on a thread of its own: cells that want one join, and an interrupt of a cell
     * ends its waiting alone.
     *
     * Toree begins another wait for each use of `spark`, on the pool that has one thread a core and makes the answers of all cells:
     * after as many interrupts as there are cores, nothing of the kernel is answered until the session is there.
     */
    private static final class Sessions {
        private final Kernel kernel;
        private final ThreadGroup group = Thread.currentThread().getThreadGroup();
        private Attempt underWay;
        private int waiting;

        Sessions(Kernel kernel) {
            this.kernel = kernel;
        }

        /** Return the session, as Spark's builder would, made now if there is none; raises what Spark does, or the interrupt. */
        SparkSession session() {
            SparkSession there = living();
            if (there != null) {
                return there;
            }
            Attempt attempt = join();
            try {
                return (SparkSession) attempt.outcome().get();
            } finally {
                leave();
            }
        }

        /** This thread's session, or the kernel's, unless it has been stopped; without Spark's own locks. */
        private static SparkSession living() {
            scala.Option[] found = {
                org.apache.spark.sql.SparkSession$.MODULE$.getActiveSession(),
                org.apache.spark.sql.SparkSession$.MODULE$.getDefaultSession()};
            for (int i = 0; i < found.length; i++) {
                if (!found[i].isEmpty() && !((SparkSession) found[i].get()).sparkContext().isStopped()) {
                    return (SparkSession) found[i].get();
                }
            }
            return null;
        }

        synchronized Attempt join() {
            if (underWay == null) {
                underWay = new Attempt(this);
                // Not in the group of the cell's own threads: what Spark prints meanwhile is for the log.
                Thread thread = new Thread(group, underWay, "spark-session");
                underWay.thread = thread;
                thread.setDaemon(true);
                thread.start();
            }
            waiting++;
            return underWay;
        }

        synchronized void leave() {
            waiting--;
        }

        synchronized void ended(Attempt attempt) {
            underWay = null;
        }

        /** Return whether a session is under way that no cell waits for. */
        synchronized boolean isAlone() {
            return underWay != null && waiting == 0;
        }

        /** Have the session that is under way given up. */
        synchronized void giveUp() {
            if (underWay != null) {
                underWay.thread.interrupt();
            }
        }
    }

    /** One session, under way. */
    private static final class Attempt implements Runnable {
        private final Sessions sessions;
        private scala.util.Try outcome;
        Thread thread;

        Attempt(Sessions sessions) {
            this.sessions = sessions;
        }

        public void run() {
            scala.util.Try made;
            try {
                SparkConf conf = sessions.kernel.createSparkConf(new SparkConf());
                made = new scala.util.Success(SparkSession.builder().config(conf).getOrCreate());
            } catch (Throwable error) { // whatever it is, it is the cell's to see
                made = new scala.util.Failure(error);
                if (error instanceof InterruptedException) {
                    stopHalf();
                }
            }
            sessions.ended(this);
            synchronized (this) {
                outcome = made;
                notifyAll();
            }
        }

        /** An interrupt is the one failure after which Spark doesn't stop what it has made so far. */
        private static void stopHalf() {
            try {
                SparkContext half = beingMade();
                if (half != null) {
                    half.stop();
                }
            } catch (Throwable error) { // it was no whole one
                System.err.println("a session that was given up: " + error);
            }
        }

        /** Wait for its end. As a Try: what Spark throws isn't declared. */
        synchronized scala.util.Try outcome() {
            try {
                while (outcome == null) {
                    wait();
                }
                return outcome;
            } catch (InterruptedException error) {
                return new scala.util.Failure(error);
            }
        }
    }

    /** The interpreter, which Toree's messages get to when it is there; what needs none of it goes through at once. */
    private static final class Late implements InvocationHandler, Runnable {
        private static final String SQL_CONTEXT = "def sqlContext: org.apache.spark.sql.SQLContext = spark.sqlContext";
        /** `postInit` is called here, after `init`. */
        private static final List AT_ONCE = Arrays.asList(new Object[] {"languageInfo", "stop", "toString", "hashCode", "equals"});

        private InterpreterManager interpreters;
        private Kernel kernel;
        Sessions sessions;
        private Interpreter coming;
        private Interpreter there;
        /** The cell that runs, by the message that brought it, and the one that was begun last. */
        private Object cell;
        private Object last;
        private Thread cellThread;
        /** When the answer of the cell that runs was begun with; 0 before its task is over. */
        private long answered;
        /** The cell that has been interrupted; it may be one that has been received and isn't here yet. */
        private Object interrupted;

        /** Returns the interpreter, or null before it is there. */
        synchronized Interpreter interpreter() {
            return there;
        }

        /** Begin with the interpreters; returns what stands for the one of cells. */
        Interpreter begin(InterpreterManager interpreters, Kernel kernel) {
            this.interpreters = interpreters;
            this.kernel = kernel;
            coming = (Interpreter) interpreters.defaultInterpreter().get();
            Thread thread = new Thread(this, "interpreter-start");
            thread.setDaemon(true);
            thread.start();
            Class[] types = {Interpreter.class};
            return (Interpreter) java.lang.reflect.Proxy.newProxyInstance(Interpreter.class.getClassLoader(), types, this);
        }

        public void run() {
            try {
                interpreters.initializeInterpreters(kernel);
                String ready = org.apache.toree.plugins.AllInterpretersReady$.MODULE$.name();
                kernel.pluginManager().fireEvent(ready, org.apache.toree.plugins.dependencies.DependencyManager.Empty());
                coming.postInit();
                offerSqlContext();
                synchronized (this) {
                    there = coming;
                    notifyAll();
                }
            } catch (Throwable error) { // as it would be in Toree's own order: there is no kernel then
                error.printStackTrace();
                System.exit(1);
            }
        }

        /** As Python's and R's kernels have it; one that can't have it, by the interpreter's options say, is a kernel all the same. */
        private void offerSqlContext() {
            try {
                if (tasks(coming) != null) {
                    coming.interpret(SQL_CONTEXT, true, scala.Option.empty());
                }
            } catch (RuntimeException error) {
                System.err.println("sqlContext: " + error);
            }
        }

        /** An interrupt has come: returns the cell that it has to end, null if it need not, or not yet. */
        synchronized Object interrupted() {
            if (cell == null) {
                Object received = received();
                if (received != last) {
                    interrupted = received; // on its way here; kept for it
                }
                return null;
            }
            interrupted = cell;
            notifyAll();
            return there == null ? null : cell;
        }

        /** Return the message that brought the cell which has been received last; null before the first one. */
        private static Object received() {
            scala.Option message = ExecuteRequestState.lastKernelMessage();
            return message.isEmpty() ? null : message.get();
        }

        /** Return the cell that runs, null if there is none. */
        synchronized Object cell() {
            return there == null ? null : cell;
        }

        synchronized boolean runs(Object cell) {
            return cell == this.cell;
        }

        synchronized boolean isInterrupted(Object cell) {
            return cell == interrupted;
        }

        /**
         * Have a cell answered whose answer doesn't come; returns whether that has been waited for long enough.
         *
         * An error's answer is compiled, on a busy machine for seconds: an interrupt breaks the interpreter off in its own
         * bookkeeping there, and the next cell ends with this one's error.
         */
        synchronized boolean release(Object cell) {
            if (cell != this.cell) {
                return true;
            }
            boolean since = answered == 0 || System.currentTimeMillis() > answered + FOLLOWED;
            if (!since || isIn(cellThread, COMPILER)) {
                return false;
            }
            cellThread.interrupt();
            return true;
        }

        synchronized void answers() {
            answered = System.currentTimeMillis();
        }

        synchronized Object begins() {
            Object received = received();
            cell = received == null || received == last ? new Object() : received;
            last = received;
            cellThread = Thread.currentThread();
            answered = 0;
            return cell;
        }

        synchronized void ends() {
            cell = null;
            cellThread = null;
            Thread.interrupted(); // of `release`, if that was too late
        }

        public Object invoke(Object proxy, Method method, Object[] arguments) throws Throwable {
            String name = method.getName();
            if (name.equals("postInit")) {
                return null;
            }
            if (name.equals("interpret")) {
                return interpret(method, arguments);
            }
            if (!AT_ONCE.contains(name) && name.indexOf("$default$") < 0) {
                await(null);
            }
            try {
                return method.invoke(coming, arguments);
            } catch (InvocationTargetException error) {
                // Like a cell, what Toree throws here would leave this and all later ones of its kind unanswered.
                if (name.equals("completion")) {
                    return new scala.Tuple2(arguments[1], scala.collection.immutable.Nil$.MODULE$);
                }
                if (name.equals("isComplete")) {
                    return new scala.Tuple2("unknown", "");
                }
                throw error.getCause();
            }
        }

        /**
         * Run a cell. Whatever happens there is a result: what is thrown here ends the actor that Toree has waiting for it, and
         * neither this cell nor any later one would be answered.
         */
        private Object interpret(Method method, Object[] arguments) {
            Object cell = begins();
            try {
                if (!await(cell)) {
                    String what = interpreter() == null ? "the interpreter was there" : "it began";
                    return failure(InterruptedException.class.getName(), "interrupted before " + what);
                }
                boolean ours = coming instanceof ScalaInterpreter;
                return whole(cell, ours ? run((String) arguments[0], arguments[1]) : method.invoke(coming, arguments));
            } catch (Throwable error) {
                boolean wrapped = error instanceof InvocationTargetException || error instanceof ExecutionException;
                Throwable cause = wrapped && error.getCause() != null ? error.getCause() : error;
                if (isInterrupted(cell)) {
                    return failure(InterruptedException.class.getName(), "the cell was interrupted");
                }
                cause.printStackTrace(); // to the kernel's log
                return failure(cause.getClass().getName(), cause.getMessage());
            } finally {
                ends();
            }
        }

        /**
         * As Toree's, on this thread alone. Toree makes a result on the pool of all futures: of what Scala takes for fatal, such as a
         * NoClassDefFoundError in a result's own toString, nothing comes there, and of an error that printed nothing None.get.
         */
        private Object run(String code, Object silent) throws Exception {
            ScalaInterpreter interpreter = (ScalaInterpreter) coming;
            scala.concurrent.Future task = interpreter.interpretAddTask(code, ((Boolean) silent).booleanValue());
            try {
                Object outcome = scala.concurrent.Await.result(task, scala.concurrent.duration.Duration$.MODULE$.Inf());
                answers();
                return result(interpreter, outcome);
            } finally {
                interpreter.lastResultOut().reset(); // `lastException = null`, of Toree's own bookkeeping, isn't the next cell's
            }
        }

        private static Object failure(String name, String value) {
            scala.collection.immutable.List nowhere = scala.collection.immutable.Nil$.MODULE$;
            Object error = new ExecuteError(name, value == null ? "" : value, nowhere);
            return new scala.Tuple2(org.apache.toree.interpreter.Results$Error$.MODULE$, new scala.util.Right(error));
        }

        /** Return a *result* of Toree's; an error without a message, which it can't write down, with one. */
        private Object whole(Object cell, Object result) {
            Object second = ((scala.Tuple2) result)._2();
            if (second instanceof scala.util.Right && ((scala.util.Right) second).value() instanceof ExecuteError) {
                ExecuteError error = (ExecuteError) ((scala.util.Right) second).value();
                boolean wordless = error.value() == null || error.value().isEmpty();
                if (wordless && error.stackTrace().isEmpty() && isInterrupted(cell)) { // of which the interpreter has printed nothing
                    return failure(InterruptedException.class.getName(), "the cell was interrupted");
                }
                if (error.value() == null) {
                    Object named = new ExecuteError(error.name(), "", error.stackTrace());
                    return new scala.Tuple2(((scala.Tuple2) result)._1(), new scala.util.Right(named));
                }
            }
            return result;
        }

        /** Return what has been thrown, with all its causes, for the words of which the interpreter has no room; null if there is none. */
        private static Throwable thrown(ScalaInterpreter interpreter) {
            scala.Option last = interpreter.read("lastException");
            return !last.isEmpty() && last.get() instanceof Throwable ? (Throwable) last.get() : null;
        }

        /** Return an *error* of a cell; that of Spark's behind which is a fault of the installation, with its remedy below the stack. */
        private static ExecuteError advised(ExecuteError error, Throwable thrown) {
            StringWriter stack = new StringWriter();
            try {
                thrown.printStackTrace(new PrintWriter(stack, true));
            } catch (RuntimeException wordless) { // it is the user's own
                return error;
            }
            StringBuilder text = new StringBuilder();
            String[] lines = stack.toString().split("\n");
            for (int i = 0; i < lines.length; i++) {
                if (!lines[i].trim().startsWith("at ")) { // what each cause says, and not where it was
                    text.append(lines[i]).append("\n");
                }
            }
            String advice = Words.ask("advise", text.substring(0, Math.min(text.length(), Words.LONGEST)));
            if (advice.isEmpty()) {
                return error;
            }
            List shown = new ArrayList(scala.collection.JavaConverters.seqAsJavaList(error.stackTrace()));
            shown.add(advice);
            return new ExecuteError(
                error.name(), error.value(), scala.collection.JavaConverters.asScalaBuffer(shown).toList());
        }

        private Object result(ScalaInterpreter interpreter, Object outcome) throws Exception {
            String printed = interpreter.lastResultOut().toString("UTF-8").trim();
            interpreter.lastResultOut().reset();
            scala.Tuple3 parts = interpreter.prepareResult(
                printed, KernelOptions.showTypes(), KernelOptions.noTruncation(), KernelOptions.showOutput());
            scala.Option value = (scala.Option) parts._1();
            scala.Option definitions = (scala.Option) parts._2();
            scala.Option text = (scala.Option) parts._3();
            if (!definitions.isEmpty()) {
                kernel.display().content("text/plain", (String) definitions.get());
            }
            if (outcome.toString().equals("Error")) {
                boolean sparks = printed.indexOf("org.apache.") >= 0 && !isInterrupted(cell());
                Throwable thrown = sparks ? thrown(interpreter) : null; // which the next line forgets
                ExecuteError error = interpreter.interpretConstructExecuteError(text.isEmpty() ? printed : (String) text.get());
                error = thrown == null ? error : advised(error, thrown);
                return new scala.Tuple2(org.apache.toree.interpreter.Results$Error$.MODULE$, new scala.util.Right(error));
            }
            if (!text.isEmpty()) {
                kernel.display().content("text/plain", (String) text.get());
            }
            if (outcome.toString().equals("Incomplete")) {
                return failure("Syntax Error.", "at its end something is still open: a bracket, a text or a comment");
            }
            scala.collection.immutable.Map shown = scala.collection.immutable.Map$.MODULE$.empty();
            if (!value.isEmpty()) {
                Iterator types = jupyter.Displayers.display(value.get()).entrySet().iterator();
                while (types.hasNext()) {
                    Map.Entry type = (Map.Entry) types.next();
                    shown = shown.updated(type.getKey(), type.getValue());
                }
            }
            return new scala.Tuple2(org.apache.toree.interpreter.Results$Success$.MODULE$, new scala.util.Left(shown));
        }

        /** Wait for the interpreter; returns whether it is there, and the *cell* that waits, if it is one, not interrupted. */
        synchronized boolean await(Object cell) throws InterruptedException { // not private: Janino would drop `synchronized`
            while (there == null && (cell == null || cell != interrupted)) {
                wait();
            }
            return cell == null || cell != interrupted;
        }
    }

    /** The classes that cells define, as the interpreter has them now: it changes its own loader with each jar that is added. */
    private static final class CellClasses extends ClassLoader {
        private final Interpreter interpreter;

        CellClasses(Interpreter interpreter) {
            super(SparkScalaKernel.class.getClassLoader());
            this.interpreter = interpreter;
        }

        protected Class findClass(String name) throws ClassNotFoundException {
            ClassLoader current;
            try {
                Object main = interpreter.getClass().getMethod("iMain", new Class[0]).invoke(interpreter, new Object[0]);
                current = ((scala.tools.nsc.interpreter.IMain) main).classLoader();
            } catch (Exception error) {
                throw new ClassNotFoundException(name, error);
            }
            return current.loadClass(name);
        }
    }

    /** Tells the cell that makes a session what that waits for, where it is, or with host and remedy why there is none. */
    private static final class Words extends AbstractAppender implements Runnable {
        private static final String FAILURE = "Error initializing SparkContext";
        private static final String NAME = "session-words";
        /** Seconds for one answer of a process of its own. */
        private static final long ASKED = 10;
        /** Characters of a question that a pipe holds, whatever they are: nothing waits for a process to read. */
        static final int LONGEST = 16000;

        private final SparkScalaKernel kernel;
        private Object watched;
        private Process watch;
        /** What was said last of a session under way, and the cell that it was said to. */
        private String news;
        private Object told;
        /** The cell whose tasks are looked for, when the last look was, and when the last sign that something moves. */
        private Object looked;
        private long lastLook;
        private long moved;
        private int done;
        private boolean stuck;

        Words(SparkScalaKernel kernel) {
            super(NAME, null, null, true, null);
            this.kernel = kernel;
            start();
        }

        public void run() {
            SparkContext known = null;
            while (true) {
                try {
                    Thread.sleep(SESSION_LOOK);
                    listen();
                    SparkContext active = active();
                    if (active == null) {
                        watchNew();
                        repeat();
                        continue;
                    }
                    endWatch();
                    Object cell = kernel.late.cell();
                    if (active != known && cell instanceof KernelMessage) { // else it is said to the next one
                        kernel.stderr(cell).println(announcement(active));
                        known = active;
                    }
                    lookForTasks(active, cell);
                } catch (Throwable error) { // another release of Toree or Spark: there are no words then, and the session is as good
                    System.err.println("words on the session: " + error);
                    return;
                }
            }
        }

        /** Say to the cell that runs, once, that its jobs get no executor. */
        private void lookForTasks(SparkContext active, Object cell) throws Exception {
            long now = System.currentTimeMillis();
            if (cell == null || now < lastLook + TASKS_LOOK) {
                return;
            }
            lastLook = now;
            boolean any = false;
            boolean busy = cell != looked;
            int completed = 0;
            int[] stages = active.statusTracker().getActiveStageIds();
            for (int i = 0; i < stages.length; i++) {
                scala.Option stage = active.statusTracker().getStageInfo(stages[i]);
                if (!stage.isEmpty()) {
                    any = true;
                    busy |= ((SparkStageInfo) stage.get()).numActiveTasks() > 0;
                    completed += ((SparkStageInfo) stage.get()).numCompletedTasks();
                }
            }
            looked = cell;
            if (busy || !any || completed != done) {
                moved = now;
                done = completed;
                stuck = false;
            } else if (!stuck && now > moved + TASKS_IDLE && cell instanceof KernelMessage) {
                stuck = true;
                Process process = tell("stuck");
                process.getOutputStream().write(executors(active).getBytes("UTF-8"));
                process.getOutputStream().close();
                pass(process, false);
            }
        }

        /** What is known of executors: whether there ever was one, where they find the driver, why those went that have gone. */
        private static String executors(SparkContext active) {
            boolean ever = false;
            StringBuilder gone = new StringBuilder();
            scala.collection.Seq executors = active.statusStore().executorList(false);
            for (int i = 0; i < executors.size(); i++) {
                ExecutorSummary executor = (ExecutorSummary) executors.apply(i);
                ever |= !executor.id().equals("driver");
                if (!executor.removeReason().isEmpty()) {
                    gone.append(String.valueOf(executor.removeReason().get()).replaceAll("\\s+", " ")).append("\n");
                }
            }
            SparkConf conf = active.getConf();
            return ever + "\n" + conf.get("spark.driver.host", "") + ":" + conf.get("spark.driver.port", "") + "\n" + gone;
        }

        /** Say *line* to the cell that waits for a session, and keep it for one that comes to wait later; null: what is kept. */
        synchronized void say(String line) throws Exception {
            Object cell = kernel.late.cell();
            news = line == null ? news : line;
            boolean waits = cell instanceof KernelMessage && (kernel.late.sessions == null || !kernel.late.sessions.isAlone());
            if (waits && news != null && (line != null || cell != told)) {
                told = cell;
                kernel.stderr(cell).println(news);
            }
        }

        private void repeat() throws Exception {
            if (watch != null) {
                say(null);
            }
        }

        private static String announcement(SparkContext context) {
            String said = "Spark " + context.version() + ": application " + context.applicationId() + " on " + context.master();
            return context.uiWebUrl().isEmpty() ? said : said + ", " + context.uiWebUrl().get();
        }

        /** Have log events come here, also after somebody has configured the logs anew. */
        private void listen() {
            LoggerContext logs = (LoggerContext) LogManager.getContext(SparkContext.class.getClassLoader(), false);
            if (!logs.getConfiguration().getRootLogger().getAppenders().containsKey(NAME)) {
                logs.getConfiguration().getRootLogger().addAppender(this, org.apache.logging.log4j.Level.ERROR, null);
                logs.updateLoggers();
            }
        }

        /** Begin to tell of a session that is being made, if there is one that has not been begun to be told of. */
        private void watchNew() throws Exception {
            SparkContext being = beingMade();
            if (being == null || being == watched) {
                return;
            }
            watched = being;
            news = null;
            final Process process = tell("watch");
            watch = process;
            Thread reader = new Thread(new Runnable() {
                public void run() {
                    pass(process, true);
                }
            }, NAME);
            reader.setDaemon(true);
            reader.start();
        }

        private void endWatch() {
            Process process = watch;
            watch = null;
            if (process != null) {
                process.destroy();
            }
        }

        /** Spark says why it gives a session up, on the thread that makes it: the cell has our words before it has Spark's. */
        public void append(LogEvent event) {
            if (event.getThrown() == null || !event.getMessage().getFormattedMessage().startsWith(FAILURE)) {
                return;
            }
            try {
                endWatch();
                StringWriter text = new StringWriter();
                event.getThrown().printStackTrace(new PrintWriter(text, true));
                Process process = tell("explain");
                process.getOutputStream().write(text.toString().getBytes("UTF-8"));
                process.getOutputStream().close();
                pass(process, false);
            } catch (Exception error) { // then the cell has Spark's own words alone
                System.err.println("words on the session: " + error);
            }
        }

        static Process tell(String what) throws Exception {
            String[] command = {System.getenv("EG_SPARK_PYTHON"), System.getenv("EG_SPARK_TELL"), what};
            return new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        }

        /** Return what is told of *text*; "" if that is nothing, or isn't there in time, or the cell is interrupted meanwhile. */
        static String ask(String what, String text) {
            Process process = null;
            try {
                process = tell(what);
                process.getOutputStream().write(text.getBytes("UTF-8"));
                process.getOutputStream().close();
                if (!process.waitFor(ASKED, java.util.concurrent.TimeUnit.SECONDS)) {
                    return "";
                }
                // A line, which the pipe has held.
                String line = new BufferedReader(new InputStreamReader(process.getInputStream(), "UTF-8")).readLine();
                return line == null ? "" : line;
            } catch (Exception error) { // then the cell has Spark's own words alone
                System.err.println("words on an error: " + error);
                return "";
            } finally {
                if (process != null) {
                    process.destroyForcibly();
                }
            }
        }

        /** Pass each line of a process on to the cell; *news* also to those that come to wait later. */
        private void pass(Process process, boolean news) {
            try {
                BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream(), "UTF-8"));
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                    Object cell = kernel.late.cell();
                    if (news) {
                        say(line);
                    } else if (cell instanceof KernelMessage) {
                        kernel.stderr(cell).println(line);
                    }
                }
            } catch (Exception ended) { // the process has been ended meanwhile, or there is no cell yet
                System.err.println("words on the session: " + ended);
            }
        }
    }
}
