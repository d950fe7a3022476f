import java.util.Iterator;
import java.util.List;

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

    private Interpreter interpreter;
    private SignalHandler toreesOwn;

    public static void main(String[] arguments) {
        SparkScalaKernel kernel = new SparkScalaKernel();
        Signal.handle(new Signal(arguments[0]), kernel);
        Thread results = new Thread(kernel, "notebook-classes");
        results.setDaemon(true);
        results.start();
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
    }

    /** For as long as the kernel lives: has each new session's driver find the classes that cells define. */
    public void run() {
        SparkContext known = null;
        while (true) {
            try {
                Thread.sleep(SESSION_LOOK);
                scala.Option active = org.apache.spark.SparkContext$.MODULE$.getActive();
                if (active.isEmpty() || active.get() == known || !findInterpreter()) {
                    continue;
                }
                known = (SparkContext) active.get();
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
    private boolean cancelJobs() {
        scala.Option active = org.apache.spark.SparkContext$.MODULE$.getActive();
        if (active.isEmpty()) {
            return false;
        }
        SparkContext context = (SparkContext) active.get();
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
}
