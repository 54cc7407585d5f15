//! System calls by name, as libseccomp knows them; runtimes pass over those that their libseccomp does not know.
//!
//! Missing on purpose: new keyrings (`add_key`, `keyctl`, `request_key`), `userfaultfd`, `io_uring_*`, swap, `kexec`,
//! `nfsservctl`, `pivot_root`, old module calls. Source: Linux, `syscalls(2)`; Docker's default profile.

/// Allowed for everybody, by theme.
pub(super) const ALWAYS: &str = "
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek _llseek
    open openat openat2 creat close close_range dup dup2 dup3 pipe pipe2 fcntl fcntl64 flock ioctl
    fsync fdatasync sync syncfs sync_file_range fadvise64 fadvise64_64 readahead fallocate cachestat
    truncate truncate64 ftruncate ftruncate64 copy_file_range sendfile sendfile64 splice tee vmsplice

    access faccessat faccessat2 stat stat64 lstat lstat64 fstat fstat64 fstatat64 newfstatat statx oldfstat oldlstat
    oldstat statfs statfs64 fstatfs fstatfs64 ustat getdents getdents64 readdir readlink readlinkat name_to_handle_at
    chdir fchdir getcwd mkdir mkdirat rmdir link linkat symlink symlinkat unlink unlinkat rename renameat renameat2
    mknod mknodat chmod fchmod fchmodat fchmodat2 chown chown32 fchown fchown32 fchownat lchown lchown32 umask
    utime utimes utimensat utimensat_time64 futimesat
    getxattr getxattrat lgetxattr fgetxattr listxattr listxattrat llistxattr flistxattr
    setxattr setxattrat lsetxattr fsetxattr removexattr removexattrat lremovexattr fremovexattr
    file_getattr file_setattr inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark

    select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2
    eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
    timerfd_settime64 io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64

    brk mmap mmap2 munmap mremap mprotect madvise process_madvise mincore msync mlock mlock2 mlockall munlock munlockall
    mseal membarrier memfd_create memfd_secret remap_file_pages map_shadow_stack
    pkey_alloc pkey_free pkey_mprotect process_mrelease

    execve execveat exit exit_group fork vfork wait4 waitid waitpid getpid getppid gettid getpgid getpgrp setpgid
    getsid setsid prctl ptrace process_vm_readv process_vm_writev pidfd_open pidfd_send_signal set_tid_address
    set_thread_area get_thread_area set_robust_list get_robust_list rseq restart_syscall seccomp
    futex futex_time64 futex_waitv futex_wait futex_wake futex_requeue
    capget capset getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid getresuid32
    getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 setreuid setreuid32 setregid
    setregid32 setresuid setresuid32 setresgid setresgid32 setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32
    getrlimit setrlimit ugetrlimit prlimit64 getrusage getpriority setpriority nice ioprio_get ioprio_set
    sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam
    sched_getscheduler sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval
    sched_rr_get_interval_time64 getcpu uname sysinfo getrandom
    landlock_create_ruleset landlock_add_rule landlock_restrict_self

    kill tkill tgkill pause alarm signal sigaction sigaltstack sigpending sigprocmask sigreturn sigsuspend
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64

    time times gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 clock_nanosleep
    clock_nanosleep_time64 clock_adjtime clock_adjtime64 adjtimex nanosleep getitimer setitimer timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64

    socketpair bind listen accept accept4 connect shutdown getsockname getpeername getsockopt setsockopt
    send sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 socketcall

    ipc msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
    mq_open mq_unlink mq_notify mq_getsetattr mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64
";

/// Allowed besides, on machines of this kind (their 32-bit programs included).
pub(super) const ON_MACHINE: [(&str, &str); 2] = [
    ("x86_64", "arch_prctl modify_ldt"),
    (
        "aarch64",
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
];

/// Allowed besides, for those who have the capability. Without `SYS_ADMIN` there is a limited `clone`.
pub(super) const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie mount mount_setattr
         move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns
         statmount syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];
