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
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;
import java.util.jar.JarEntry;

import com.typesafe.config.Config;
import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.core.LogEvent;
import org.apache.logging.log4j.core.LoggerContext;
import org.apache.logging.log4j.core.appender.AbstractAppender;
import org.apache.spark.SparkContext;
import org.apache.spark.scheduler.ActiveJob;
import org.apache.toree.boot.CommandLineOptions;
import org.apache.toree.boot.KernelBootstrap;
import org.apache.toree.boot.layer.InterpreterManager;
import org.apache.toree.boot.layer.StandardBareInitialization;
import org.apache.toree.boot.layer.StandardComponentInitialization;
import org.apache.toree.boot.layer.StandardHandlerInitialization;
import org.apache.toree.boot.layer.StandardHookInitialization;
import org.apache.toree.interpreter.ExecuteError;
import org.apache.toree.interpreter.Interpreter;
import org.apache.toree.kernel.api.Kernel;
import org.apache.toree.kernel.protocol.v5.kernel.ActorLoader;
import org.apache.toree.plugins.Plugin;
import org.apache.toree.plugins.PluginManager;
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
 * class could be collected. Read by Janino, which every Spark has and which compiles this at the kernel's start: no
 * lambdas, no jar to build, nothing to install.
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

    /** How often, and how far apart, an interrupted cell is looked at for jobs that it begins only now. */
    private static final int AGAIN = 25;
    private static final long AGAIN_LOOK = 200;

    private final Late late = new Late();

    public static void main(String[] arguments) {
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

    /** Called by the JVM in a thread of its own for each signal; one at a time, a second interrupt finds the first one done. */
    public synchronized void handle(Signal signal) {
        try {
            interrupt();
        } catch (Throwable error) { // whatever a release of Toree or Spark does otherwise, an interrupt must not end the kernel
            System.err.println("interrupt: " + error);
        }
    }

    private void interrupt() throws Exception {
        Interpreter interpreter = late.interpreter();
        if (interpreter == null) {
            late.giveUp();
            return;
        }
        TaskManager cells = tasks(interpreter);
        if (cells == null) {
            interpreter.interrupt();
            return;
        }
        if (!cells.isExecutingTask()) {
            return;
        }
        if (cancelJobs()) {
            long end = System.currentTimeMillis() + JOBS_GRACE;
            while (System.currentTimeMillis() < end) {
                if (!cells.isExecutingTask()) {
                    return;
                }
                Thread.sleep(LOOK);
            }
        }
        interruptThreads();
        // A job that was still being planned, or comes next in a loop of the JVM's, is not the next cell's yet.
        for (int i = 0; i < AGAIN && cells.isExecutingTask(); i++) {
            Thread.sleep(AGAIN_LOOK);
            if (cells.isExecutingTask()) {
                cancelJobs();
            }
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

    /** Returns what shows text as stderr of the cell that came last; null if there is no such thing. */
    private PrintStream cell() {
        return late.interpreter() == null ? null : late.kernel.err();
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
     * Cancels all jobs of the session, if there is one, and returns whether there were any.
     *
     * RDD jobs bring no wish to have their tasks interrupted; without it, a sleeping task keeps its core from the next job.
     */
    private boolean cancelJobs() throws Exception {
        SparkContext context = active();
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

    private void interruptThreads() {
        Thread[] threads = new Thread[4 * Thread.activeCount() + 64];
        ThreadGroup root = Thread.currentThread().getThreadGroup();
        while (root.getParent() != null) {
            root = root.getParent();
        }
        int count = root.enumerate(threads, true);
        for (int i = 0; i < count; i++) {
            if (runsCell(threads[i])) {
                threads[i].interrupt();
            }
        }
    }

    private static boolean runsCell(Thread thread) {
        StackTraceElement[] frames = thread.getStackTrace();
        boolean pooled = false;
        boolean cell = false;
        for (int i = 0; i < frames.length; i++) {
            pooled |= frames[i].getClassName().startsWith("org.apache.toree.utils.TaskManager");
            cell |= frames[i].getClassName().startsWith("org.apache.toree.kernel.interpreter.");
        }
        return pooled && cell;
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
                Kernel kernel = (Kernel) torees("initializeKernel", parts);
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

    /** The interpreter, which Toree's messages get to when it is there; what needs none of it goes through at once. */
    private static final class Late implements InvocationHandler, Runnable {
        private static final String SQL_CONTEXT = "def sqlContext: org.apache.spark.sql.SQLContext = spark.sqlContext";
        /** `postInit` is called here, after `init`. */
        private static final List AT_ONCE = Arrays.asList(new Object[] {"languageInfo", "stop", "toString", "hashCode", "equals"});

        private InterpreterManager interpreters;
        private Kernel kernel;
        private Interpreter coming;
        private Interpreter there;
        private boolean givenUp;

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

        /** Interrupt the cell that waits for the interpreter, if there is one. */
        synchronized void giveUp() {
            givenUp = true;
            notifyAll();
        }

        public Object invoke(Object proxy, Method method, Object[] arguments) throws Throwable {
            if (method.getName().equals("postInit")) {
                return null;
            }
            boolean atOnce = AT_ONCE.contains(method.getName()) || method.getName().indexOf("$default$") > 0;
            if (!atOnce && !await(method.getName().equals("interpret"))) {
                scala.collection.immutable.List nowhere = scala.collection.immutable.Nil$.MODULE$;
                String name = InterruptedException.class.getName();
                Object error = new ExecuteError(name, "interrupted before the interpreter was there", nowhere);
                return new scala.Tuple2(org.apache.toree.interpreter.Results$Error$.MODULE$, new scala.util.Right(error));
            }
            try {
                return method.invoke(coming, arguments);
            } catch (InvocationTargetException error) {
                throw error.getCause();
            }
        }

        /** Wait for the interpreter; returns whether it is there, which it isn't for a *cell* that has been interrupted. */
        synchronized boolean await(boolean cell) throws InterruptedException { // not private: Janino would drop `synchronized`
            if (cell) {
                givenUp = false;
            }
            while (there == null && !(cell && givenUp)) {
                wait();
            }
            return there != null && !(cell && givenUp);
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

        private final SparkScalaKernel kernel;
        private Object watched;
        private Process watch;

        Words(SparkScalaKernel kernel) {
            super(NAME, null, null, true, null);
            this.kernel = kernel;
            start();
        }

        public void run() {
            SparkContext told = null;
            while (true) {
                try {
                    Thread.sleep(SESSION_LOOK);
                    listen();
                    SparkContext active = active();
                    if (active != null && active != told) {
                        endWatch();
                        PrintStream cell = kernel.cell();
                        if (cell != null) {
                            cell.println(announcement(active));
                            told = active;
                        }
                    } else if (active == null) {
                        watchNew();
                    }
                } catch (IllegalArgumentException noCell) { // a session that no cell has asked for: said to the first one
                } catch (Throwable error) { // another release of Toree or Spark: there are no words then, and the session is as good
                    System.err.println("words on the session: " + error);
                    return;
                }
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
            java.lang.reflect.Field field = org.apache.spark.SparkContext$.class.getDeclaredField("contextBeingConstructed");
            field.setAccessible(true);
            scala.Option being = (scala.Option) field.get(org.apache.spark.SparkContext$.MODULE$);
            if (being.isEmpty() || being.get() == watched) {
                return;
            }
            watched = being.get();
            final Process process = tell("watch");
            watch = process;
            Thread reader = new Thread(new Runnable() {
                public void run() {
                    pass(process);
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
                pass(process);
            } catch (Exception error) { // then the cell has Spark's own words alone
                System.err.println("words on the session: " + error);
            }
        }

        private static Process tell(String what) throws Exception {
            String[] command = {System.getenv("EG_SPARK_PYTHON"), System.getenv("EG_SPARK_TELL"), what};
            return new ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start();
        }

        /** Pass each line of a process on to the cell. */
        private void pass(Process process) {
            try {
                BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream(), "UTF-8"));
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                    PrintStream cell = kernel.cell();
                    if (cell != null) {
                        cell.println(line);
                    }
                }
            } catch (Exception ended) { // the process has been ended meanwhile, or there is no cell yet
                System.err.println("words on the session: " + ended);
            }
        }
    }
}
