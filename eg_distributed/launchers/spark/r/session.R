# What a notebook finds on a node without SparkR: the session, and the few functions that bring data and closures there and back.
# Sourced after rbackend.R, into the same environment.

backend$session <- NULL

# Return the SparkSession, made at the first call: SparkSession.builder().getOrCreate() in the kernel's JVM, with the *settings* (a
# list of texts by their names) beside the kernelspec's, and Hive's catalog if *hive*.
.session <- function(settings = list(), hive = FALSE) {
  if (!.lives()) {
    backend$session <- backend$context <- NULL
    backend$start()
    on.exit(backend$asked())
    backend$ask()
    session <- tryCatch({
      builder <- sparkR.callJStatic("org.apache.spark.sql.SparkSession", "builder")
      for (name in names(settings)) sparkR.callJMethod(builder, "config", name, settings[[name]])
      if (hive) sparkR.callJMethod(builder, "enableHiveSupport")
      sparkR.callJMethod(builder, "getOrCreate")
    }, error = function(e) {
      stop(backend$explain(conditionMessage(e)), call. = FALSE)
    })
    context <- sparkR.callJMethod(session, "sparkContext")
    if (is.null(backend$control)) backend$control <- suspendInterrupts(.open())
    backend$context <- context
    backend$session <- session
    suspendInterrupts(.settle())
    backend$announce(context)
  }
  backend$session
}

# Whether there is a session, and spark$stop() has not ended it. Of a JVM that doesn't answer the next call says more.
.lives <- function() {
  if (is.null(backend$session)) return(FALSE)
  !isTRUE(tryCatch(sparkR.callJMethod(backend$context, "isStopped"), error = function(e) FALSE))
}

.java_context <- function() {
  sparkR.callJStatic("org.apache.spark.sql.api.r.SQLUtils", "getJavaSparkContext", .session())
}

# The rows of a query: sql("select id * 2 as twice from range(10)")
sql <- function(sqlQuery) sparkR.callJMethod(.session(), "sql", sqlQuery)

# The number of rows.
count <- function(x) sparkR.callJMethod(x, "count")

# All rows as a data.frame; for results that fit into this process, and are small: each value is read by R.
collect <- function(x) {
  names <- unlist(sparkR.callJMethod(x, "columns"))
  columns <- sparkR.callJStatic("org.apache.spark.sql.api.r.SQLUtils", "dfToCols", x)
  columns <- lapply(columns, function(column) {
    values <- lapply(column, function(value) if (is.null(value)) NA else value)
    plain <- all(vapply(values, function(value) is.atomic(value) && length(value) == 1L, NA))
    if (plain) do.call(c, values) else I(values)
  })
  names(columns) <- names
  empty <- lengths(columns) == 0L
  columns[empty] <- list(logical())
  as.data.frame(columns, optional = TRUE, stringsAsFactors = FALSE)
}

# -- what Spark prints, which would be in the kernel's log otherwise -------------------------------------------------------------

# The first rows, as text: showDF(df), df$show(5L), df$show(FALSE).
showDF <- function(x, numRows = 20L, truncate = TRUE, vertical = FALSE) {
  if (is.logical(numRows)) {
    truncate <- numRows
    numRows <- 20L
  }
  width <- if (is.logical(truncate)) if (truncate) 20L else 0L else as.integer(truncate)
  cat(sparkR.callJMethod(x, "showString", as.integer(numRows), width, vertical))
  invisible()
}

printSchema <- function(x, ...) {
  cat(sparkR.callJMethod(sparkR.callJMethod(x, "schema"), "treeString", ...))
  invisible()
}

# How Spark will get at the rows; *extended*: TRUE, or one of Spark's modes ("formatted", "cost", ...).
explain <- function(x, extended = FALSE) {
  mode <- if (is.character(extended)) extended else if (extended) "extended" else "simple"
  plan <- sparkR.callJMethod(x, "queryExecution")
  cat(sparkR.callJStatic("org.apache.spark.sql.api.python.PythonSQLUtils", "explainString", plan, mode), "\n", sep = "")
  invisible()
}

.shown <- list(show = showDF, printSchema = printSchema, explain = explain)

# The first *n* rows as a data.frame.
head.jobj <- function(x, n = 6L, ...) collect(sparkR.callJMethod(x, "limit", as.integer(n)))

.needs_sparkr <- function(name) {
  force(name)
  function(...) stop(
    Sys.info()[["nodename"]], ": ", name, " needs the package SparkR; install it on the nodes and the workers, and set ",
    "EG_R_SESSION=sparkr in the kernelspec's env", call. = FALSE
  )
}
createDataFrame <- .needs_sparkr("createDataFrame")
as.DataFrame <- .needs_sparkr("as.DataFrame")
dapply <- .needs_sparkr("dapply")
dapplyCollect <- .needs_sparkr("dapplyCollect")
gapply <- .needs_sparkr("gapply")
gapplyCollect <- .needs_sparkr("gapplyCollect")

# Call *func* with each element of *list*, on the executors, and return the results: one task an element, each in an R of its
# own, which needs R on the workers and nothing else. Packages that *func* uses have to be there, too.
spark.lapply <- function(list, func) {
  closure <- .hex(.closure(func))
  lines <- vapply(list, function(element) paste(closure, .hex(element)), "", USE.NAMES = FALSE)
  if (!length(lines)) return(list())
  rows <- sparkR.callJStatic("java.util.Arrays", "asList", as.list(lines))
  command <- sparkR.callJStatic("java.util.Arrays", "asList", list(backend$worker_r, "--no-save", "--no-restore", "-e", .worker))
  distributed <- sparkR.callJMethod(.java_context(), "parallelize", rows, length(lines))
  piped <- sparkR.callJMethod(distributed, "pipe", command)
  # A task that waits for its R can't be interrupted. It comes by here with each sign of life, and looks whether it is cancelled.
  one <- sparkR.callJMethod(.java_context(), "parallelize", sparkR.callJStatic("java.util.Arrays", "asList", list("")), 1L)
  answers <- tryCatch(
    sparkR.callJMethod(sparkR.callJMethod(sparkR.callJMethod(piped, "cartesian", one), "keys"), "collect"),
    error = function(e) {
      if (!grepl("Cannot run program", conditionMessage(e), fixed = TRUE)) stop(e)
      stop(
        Sys.info()[["nodename"]], ": a worker can't run R (", backend$worker_r, "); install R there, or name the workers' Rscript ",
        "by --conf spark.r.command in SPARK_OPTS", call. = FALSE
      )
    }
  )
  answers <- unlist(sparkR.callJMethod(answers, "toArray"))
  results <- lapply(answers[nzchar(answers)], .unhex)
  failed <- Filter(function(result) inherits(result, "spark.lapply.error"), results)
  if (length(failed)) stop("on ", failed[[1]]$host, ": ", failed[[1]]$message, call. = FALSE)
  lapply(results, function(result) result$value)
}

# Return *func* with what it uses of the user's own variables and functions beside it; packages are named, not brought.
.closure <- function(func) {
  captured <- new.env(parent = globalenv())
  take <- function(func) {
    for (name in unique(c(all.names(body(func)), unlist(lapply(formals(func), all.names))))) {
      found <- .owner(name, environment(func))
      if (is.null(found) || exists(name, captured, inherits = FALSE)) next
      value <- get(name, found)
      assign(name, value, captured)
      if (is.function(value) && !is.primitive(value)) assign(name, take(value), captured)
    }
    if (!isNamespace(topenv(environment(func)))) environment(func) <- captured
    func
  }
  if (is.primitive(func)) func else take(func)
}

# The environment, from *from* up to the user's workspace, that holds *name*; NULL if it is a package's.
.owner <- function(name, from) {
  while (!identical(from, emptyenv()) && !isNamespace(from)) {
    if (exists(name, from, inherits = FALSE)) return(from)
    if (identical(from, globalenv())) return(NULL)
    from <- parent.env(from)
  }
}

.hex <- function(value) paste(as.character(serialize(value, NULL, xdr = FALSE)), collapse = "")
.unhex <- function(text) {
  starts <- seq.int(1L, nchar(text), 2L)
  unserialize(as.raw(strtoi(substring(text, starts, starts + 1L), 16L)))
}

# What runs on a worker: lines of "closure element" come in, results go out, and an empty line each second from a fork, as a
# sign of life. What the closure prints goes to the executor's log.
.work <- function() {
  out <- stdout()
  input <- file("stdin", "r")
  parent <- Sys.getpid()
  # One that is killed cleans nothing up: its temporary files go with the executor's folder, not into /tmp.
  unlink(tempdir(), recursive = TRUE)
  Sys.setenv(TMPDIR = getwd())
  tempdir(check = TRUE)
  while (length(line <- readLines(input, 1L))) {
    beats <- parallel::mcparallel(repeat {
      Sys.sleep(1)
      if (!dir.exists(file.path("/proc", parent))) break
      writeLines("", out)
      flush(out)
    }, detached = TRUE)
    sink(stderr())
    parts <- strsplit(line, " ", fixed = TRUE)[[1]]
    result <- tryCatch(list(value = .unhex(parts[[1]])(.unhex(parts[[2]]))), error = function(e) {
      structure(list(message = conditionMessage(e), host = Sys.info()[["nodename"]]), class = "spark.lapply.error")
    })
    sink()
    tools::pskill(beats$pid, tools::SIGKILL) # not into the middle of the result
    writeLines(.hex(result), out)
    flush(out)
  }
}
.worker <- paste0(".", c("hex", "unhex", "work"), " <- ", vapply(list(.hex, .unhex, .work), function(part) {
  paste(deparse(part), collapse = "\n")
}, ""), collapse = "\n")
.worker <- paste(.worker, ".work()", sep = "\n")

sparkR.version <- function() sparkR.callJMethod(.session(), "version")

# All of Spark's settings as a list, or the value of *key* (*defaultValue* where it is not set).
sparkR.conf <- function(key, defaultValue) {
  conf <- sparkR.callJMethod(.session(), "conf")
  if (missing(key)) {
    all <- sparkR.callJMethod(sparkR.callJMethod(.session(), "sparkContext"), "conf")
    pairs <- sparkR.callJMethod(all, "getAll")
    pairs <- lapply(pairs, function(pair) c(sparkR.callJMethod(pair, "_1"), sparkR.callJMethod(pair, "_2")))
    return(stats::setNames(lapply(pairs, `[[`, 2L), vapply(pairs, `[[`, "", 1L)))
  }
  value <- if (missing(defaultValue)) sparkR.callJMethod(conf, "get", key) else sparkR.callJMethod(conf, "get", key, defaultValue)
  stats::setNames(list(value), key)
}

# Make the session with settings of the notebook's own; of a session that is there already, change what can be changed. What is
# not in force then is told.
sparkR.session <- function(master = "", appName = "", sparkHome = "", sparkConfig = list(), sparkJars = "", sparkPackages = "",
                           enableHiveSupport = FALSE, ...) {
  settings <- lapply(c(as.list(sparkConfig), list(...)), .setting)
  if (nzchar(master)) settings[["spark.master"]] <- master
  if (nzchar(appName)) settings[["spark.app.name"]] <- appName
  if (any(nzchar(sparkJars))) settings[["spark.jars"]] <- paste(sparkJars, collapse = ",")
  if (any(nzchar(sparkPackages))) settings[["spark.jars.packages"]] <- paste(sparkPackages, collapse = ",")
  of_jvm <- names(settings) %in% .of_jvm
  late <- settings[of_jvm & !vapply(names(settings), function(name) identical(settings[[name]], backend$given[[name]]), NA)]
  settings <- settings[!of_jvm]
  before <- .lives()
  session <- .session(settings, enableHiveSupport)
  host <- Sys.info()[["nodename"]]
  if (nzchar(sparkHome) && sparkHome != Sys.getenv("SPARK_HOME")) late[["sparkHome"]] <- sparkHome
  if (length(late)) message(
    host, ": not in force, since Spark's JVM was started without: ", paste(names(late), late, sep = "=", collapse = ", "),
    "; put that into SPARK_OPTS or KERNEL_EXTRA_SPARK_OPTS as spark-submit's options, and restart the kernel"
  )
  ignored <- if (before) .unchanged(session, settings, enableHiveSupport)
  if (length(ignored)) message(
    host, ": not in force, since the session was there before: ", paste(ignored, collapse = ", "),
    "; call sparkR.session.stop() first"
  )
  invisible(session)
}

# Settings that Spark reads when its JVM starts, and at no other time.
.of_jvm <- c(
  paste0("spark.driver.", c("memory", "memoryOverhead", "extraJavaOptions", "defaultJavaOptions", "extraClassPath", "extraLibraryPath")),
  paste0("spark.jars", c("", ".packages", ".excludes", ".repositories", ".ivy", ".ivySettings"))
)

.setting <- function(value) {
  if (is.logical(value)) tolower(as.character(value)) else format(value, scientific = FALSE, trim = TRUE, justify = "none")
}

# Have *settings* in force in the living *session*, and return what can't be, as texts.
.unchanged <- function(session, settings, hive) {
  conf <- sparkR.callJMethod(session, "conf")
  first <- sparkR.callJMethod(sparkR.callJMethod(session, "sparkContext"), "getConf")
  if (hive) settings[["spark.sql.catalogImplementation"]] <- "hive"
  found <- lapply(names(settings), function(name) {
    of_session <- startsWith(name, "spark.sql.") || startsWith(name, "spark.hadoop.") || !startsWith(name, "spark.")
    if (of_session && tryCatch({
      sparkR.callJMethod(conf, "set", name, settings[[name]])
      TRUE
    }, error = function(e) FALSE)) return(NULL)
    now <- if (of_session) sparkR.callJMethod(conf, "get", name, "") else sparkR.callJMethod(first, "get", name, "")
    if (identical(now, settings[[name]])) return(NULL)
    paste0(name, "=", settings[[name]], " (it is ", if (nzchar(now)) now else "not set", ")")
  })
  unlist(found)
}

sparkR.session.stop <- function() {
  if (!is.null(backend$session)) sparkR.callJMethod(backend$session, "stop")
  backend$session <- NULL
  backend$context <- NULL
  invisible()
}
