import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.atomic.AtomicReference;

import org.apache.logging.log4j.LogManager;
import org.apache.logging.log4j.core.LogEvent;
import org.apache.logging.log4j.core.LoggerContext;
import org.apache.logging.log4j.core.appender.AbstractAppender;
import org.apache.spark.SparkContext;
import org.apache.spark.scheduler.ActiveJob;
import org.apache.toree.interpreter.Interpreter;
import org.apache.toree.utils.TaskManager;
import sun.misc.Signal;
import sun.misc.SignalHandler;

/**
 * Runs Toree with an interrupt of our own, on the signal that the first argument names.
 *
 * Toree's own makes a Spark session where there is none yet, only to cancel its jobs; disturbs the next cell where none is
 * running; leaves the cancelled jobs' tasks on the executors until they end by themselves; and, on SIGINT, ends the kernel when
 * it comes twice within three seconds. Nor does it tell Spark where a notebook's own classes are, so that no results of such a
 * class could be collected. Read by Janino, which every Spark has and which compiles this at the kernel's start: no
 * lambdas, no jar to build, nothing to install.
 */
public final class SparkScalaKernel implements SignalHandler, Runnable {
    /** What Toree gets as `--alternate-sigint`: a signal that nobody sends, kept to learn which interpreter it is for. */
    private static final String TOREES_OWN = "URG";
    private static final String INTERRUPT_ON_CANCEL = "spark.job.interruptOnCancel";
    /** Milliseconds that a cell has to end by its jobs' cancellation before its thread is interrupted. */
    private static final long JOBS_GRACE = 1000;
    private static final long LOOK = 10;
    /** Milliseconds between two looks for a new session: its first results take longer. */
    private static final long SESSION_LOOK = 100;

    /** How often, and how far apart, an interrupted cell is looked at for jobs that it begins only now. */
    private static final int AGAIN = 25;
    private static final long AGAIN_LOOK = 200;

    private Interpreter interpreter;
    private SignalHandler toreesOwn;

    public static void main(String[] arguments) {
        SparkScalaKernel kernel = new SparkScalaKernel();
        Signal.handle(new Signal(arguments[0]), kernel);
        Thread results = new Thread(kernel, "notebook-classes");
        results.setDaemon(true);
        results.start();
        Thread words = new Thread(new Words(kernel), "session-words");
        words.setDaemon(true);
        words.start();
        String[] torees = new String[arguments.length + 1];
        System.arraycopy(arguments, 1, torees, 0, arguments.length - 1);
        torees[arguments.length - 1] = "--alternate-sigint";
        torees[arguments.length] = TOREES_OWN;
        org.apache.toree.Main.main(torees);
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
        if (!find()) {
            return; // still starting: there is no cell to interrupt
        }
        TaskManager cells = tasks();
        if (cells == null) {
            toreesOwn.handle(new Signal(TOREES_OWN));
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
                if (active == null || active == known || !findInterpreter()) {
                    continue;
                }
                known = active;
                ClassLoader classes = new CellClasses(interpreter);
                known.env().serializer().setDefaultClassLoader(classes);
                known.env().closureSerializer().setDefaultClassLoader(classes);
            } catch (Throwable error) { // another release of Toree or Spark: collecting such results fails then, as it does in Toree
                System.err.println("classes of the notebook: " + error);
                return;
            }
        }
    }

    private synchronized boolean findInterpreter() throws Exception {
        return find() && interpreter != null;
    }

    /** Returns what shows text as stderr of the cell that came last; null if there is no such thing. */
    private PrintStream cell() throws Exception {
        if (!findInterpreter()) {
            return null;
        }
        Object toree = interpreter.getClass().getMethod("kernel", new Class[0]).invoke(interpreter, new Object[0]);
        return ((org.apache.toree.kernel.api.KernelLike) toree).err();
    }

    /** Returns whether Toree is up; it put its handler in the place of ours by then, and that one holds the interpreter. */
    private boolean find() throws Exception {
        if (toreesOwn != null) {
            return true;
        }
        SignalHandler found = Signal.handle(new Signal(TOREES_OWN), SignalHandler.SIG_IGN);
        if (!found.getClass().getName().startsWith("org.apache.toree.")) {
            return false;
        }
        toreesOwn = found;
        java.lang.reflect.Field[] fields = found.getClass().getDeclaredFields();
        for (int i = 0; i < fields.length; i++) {
            if (Interpreter.class.isAssignableFrom(fields[i].getType())) {
                fields[i].setAccessible(true);
                interpreter = (Interpreter) fields[i].get(found);
            }
        }
        return true;
    }

    /** Returns what runs the cells; null for an interpreter that isn't Scala's, or another release's. */
    private TaskManager tasks() {
        if (interpreter == null) {
            return null;
        }
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
