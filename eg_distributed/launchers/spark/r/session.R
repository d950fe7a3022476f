# What a notebook finds on a node without SparkR: the session, and the few functions that bring data and closures there and back.
# Sourced after rbackend.R, into the same environment.

backend$session <- NULL

# Return the SparkSession, made at the first call: SparkSession.builder().getOrCreate() in the kernel's JVM.
.session <- function() {
  if (is.null(backend$session)) {
    backend$start()
    on.exit(backend$asked())
    backend$ask()
    builder <- sparkR.callJStatic("org.apache.spark.sql.SparkSession", "builder")
    session <- tryCatch(sparkR.callJMethod(builder, "getOrCreate"), error = function(e) {
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

sparkR.session <- function(...) .session()

sparkR.session.stop <- function() {
  if (!is.null(backend$session)) sparkR.callJMethod(backend$session, "stop")
  backend$session <- NULL
  backend$context <- NULL
  invisible()
}
