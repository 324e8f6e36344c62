// `seamfast._confine`: what Linux denies a process for good. Plain C on system calls; no torch, no libseccomp.
//
// The numbers below are those of the kernel's interface, which never change; headers of the build machine may be older
// than the kernel of the machine that runs it. Sources: linux/landlock.h, linux/seccomp.h, linux/filter.h,
// Documentation/userspace-api/landlock.rst and seccomp_filter.rst of Linux 6.12.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#else
#error "the filter of system calls is written for x86-64 and AArch64"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the filter reads the low half of each argument first"
#endif

// Landlock. These three have the same numbers everywhere.
enum { LANDLOCK_CREATE = 444, LANDLOCK_ADD = 445, LANDLOCK_RESTRICT = 446 };

static const uint64_t kWriteFile = 1u << 1, kRemoveDir = 1u << 4, kRemoveFile = 1u << 5, kMakeChar = 1u << 6,
                      kMakeDir = 1u << 7, kMakeReg = 1u << 8, kMakeSock = 1u << 9, kMakeFifo = 1u << 10,
                      kMakeBlock = 1u << 11, kMakeSym = 1u << 12, kRefer = 1u << 13, kTruncate = 1u << 14,
                      kIoctlDev = 1u << 15;
static const uint64_t kNetBindTcp = 1u << 0, kNetConnectTcp = 1u << 1;
static const uint64_t kScopeAbstractUnix = 1u << 0, kScopeSignal = 1u << 1;

struct ruleset {
    uint64_t files, net, scoped;
};

struct __attribute__((packed)) path_rule {
    uint64_t allowed;
    int32_t parent;
};

static long landlock_abi_version(void) { return syscall(LANDLOCK_CREATE, NULL, 0, 1u); }

// What a kernel with this version of the interface can deny; reading and running programs stay allowed.
static struct ruleset denied_by(long abi) {
    struct ruleset rules = {kWriteFile | kRemoveDir | kRemoveFile | kMakeChar | kMakeDir | kMakeReg | kMakeSock |
                                kMakeFifo | kMakeBlock | kMakeSym,
                            0, 0};
    if (abi >= 2) rules.files |= kRefer;
    if (abi >= 3) rules.files |= kTruncate;
    if (abi >= 4) rules.net = kNetBindTcp | kNetConnectTcp;
    if (abi >= 5) rules.files |= kIoctlDev;
    if (abi >= 6) rules.scoped = kScopeAbstractUnix | kScopeSignal;
    return rules;
}

// Allow `rights` beneath the folder, or to the file, at `path`. Returns 0, or -1 with errno.
static int allow(int set, const char *path, uint64_t rights) {
    const int place = open(path, O_PATH | O_CLOEXEC);
    if (place < 0) return -1;
    const struct path_rule rule = {rights, place};
    const long failed = syscall(LANDLOCK_ADD, set, 1, &rule, 0u);
    const int error = errno;
    close(place);
    errno = error;
    return failed ? -1 : 0;
}

// Allow `rights` to each path of a sequence. Returns 0, or -1 with a Python exception.
static int allow_each(int set, PyObject *paths, uint64_t rights) {
    PyObject *items = PySequence_Fast(paths, "expected a sequence of paths");
    if (items == NULL) return -1;
    int result = 0;
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items) && result == 0; i++) {
        PyObject *bytes = NULL;
        if (!PyUnicode_FSConverter(PySequence_Fast_GET_ITEM(items, i), &bytes)) {
            result = -1;
        } else {
            if (allow(set, PyBytes_AS_STRING(bytes), rights)) {
                PyErr_SetFromErrnoWithFilename(PyExc_OSError, PyBytes_AS_STRING(bytes));
                result = -1;
            }
            Py_DECREF(bytes);
        }
    }
    Py_DECREF(items);
    return result;
}

static PyObject *confine_files(PyObject *self, PyObject *args) {
    (void)self;
    PyObject *folders, *devices;
    if (!PyArg_ParseTuple(args, "OO", &folders, &devices)) return NULL;
    const long abi = landlock_abi_version();
    if (abi < 1) return PyErr_SetFromErrno(PyExc_OSError);
    const struct ruleset rules = denied_by(abi);
    // Older kernels take the first fields alone.
    const size_t size = abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
    const int set = (int)syscall(LANDLOCK_CREATE, &rules, size, 0u);
    if (set < 0) return PyErr_SetFromErrno(PyExc_OSError);
    const uint64_t special = kMakeChar | kMakeBlock | kMakeSock | kMakeFifo | kIoctlDev;
    int failed = allow_each(set, folders, rules.files & ~special) ||
                 allow_each(set, devices, rules.files & (kWriteFile | kTruncate | kIoctlDev));
    if (!failed && syscall(LANDLOCK_RESTRICT, set, 0u)) {
        PyErr_SetFromErrno(PyExc_OSError);
        failed = 1;
    }
    close(set);
    return failed ? NULL : PyLong_FromLong(abi);
}

static PyObject *landlock_abi(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const long abi = landlock_abi_version();
    return PyLong_FromLong(abi < 0 ? 0 : abi);
}

// seccomp.

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOW(n) (offsetof(struct seccomp_data, args) + 8 * (n))
#define LOAD_AT(offset) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)
#define IF_EQUAL(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define IF_AT_LEAST(value, yes, no) BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, value, yes, no)
#define IF_ANY_BIT(bits, yes, no) BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bits, yes, no)
#define MASK(bits) BPF_STMT(BPF_ALU | BPF_AND | BPF_K, bits)
#define RETURN(action) BPF_STMT(BPF_RET | BPF_K, action)
#define ALLOW RETURN(SECCOMP_RET_ALLOW)
#define DENY RETURN(SECCOMP_RET_ERRNO | EPERM)
#define ABSENT RETURN(SECCOMP_RET_ERRNO | ENOSYS)
#define DENY_CALL(number) IF_EQUAL(number, 0, 1), DENY

// The same numbers on all architectures since 5.1; older headers lack the latest.
enum {
    CLONE3 = 435, IO_URING_SETUP = 425, IO_URING_ENTER = 426, IO_URING_REGISTER = 427, OPEN_TREE = 428,
    MOVE_MOUNT = 429, FSOPEN = 430, FSCONFIG = 431, FSMOUNT = 432, FSPICK = 433, PIDFD_GETFD = 438,
    PROCESS_MADVISE = 440, MOUNT_SETATTR = 442, QUOTACTL_FD = 443, PROCESS_MRELEASE = 448, FCHMODAT2 = 452,
    SETXATTRAT = 463, REMOVEXATTRAT = 466, OPEN_TREE_ATTR = 467, FILE_SETATTR = 469
};

static const struct sock_filter kFilter[] = {
    LOAD(arch), IF_EQUAL(NATIVE_ARCH, 1, 0), RETURN(SECCOMP_RET_KILL_PROCESS),
    LOAD(nr),
#ifdef __x86_64__
    IF_AT_LEAST(0x40000000u, 0, 1), DENY,  // x32, whose numbers would pass what follows
#endif

    // Connections. Sockets of one machine alone, and of those none that sends to an address of its choice.
    IF_EQUAL(__NR_socket, 0, 7),
        LOAD_AT(LOW(0)), IF_EQUAL(AF_UNIX, 1, 0), DENY,
        LOAD_AT(LOW(1)), MASK(0xf), IF_EQUAL(SOCK_DGRAM, 7, 0), ALLOW,
    IF_EQUAL(__NR_socketpair, 0, 4),
        LOAD_AT(LOW(1)), MASK(0xf), IF_EQUAL(SOCK_DGRAM, 2, 0), ALLOW,
    IF_EQUAL(__NR_connect, 0, 1), DENY,
    IF_EQUAL(__NR_sendto, 0, 5),
        LOAD_AT(LOW(4)), IF_EQUAL(0, 0, 2), LOAD_AT(LOW(4) + 4), IF_EQUAL(0, 1, 0), DENY,
    LOAD(nr),
    DENY_CALL(IO_URING_SETUP), DENY_CALL(IO_URING_ENTER), DENY_CALL(IO_URING_REGISTER),

    // Other processes.
    DENY_CALL(__NR_ptrace), DENY_CALL(__NR_process_vm_readv), DENY_CALL(__NR_process_vm_writev),
    DENY_CALL(PIDFD_GETFD), DENY_CALL(PROCESS_MADVISE), DENY_CALL(PROCESS_MRELEASE), DENY_CALL(__NR_kcmp),
    IF_EQUAL(__NR_prlimit64, 0, 3), LOAD_AT(LOW(0)), IF_EQUAL(0, 1, 0), DENY,
    LOAD(nr),
    // Characters into a terminal, as if somebody had typed them.
    IF_EQUAL(__NR_ioctl, 0, 4),
        LOAD_AT(LOW(1)), IF_EQUAL(TIOCSTI, 1, 0), IF_EQUAL(TIOCLINUX, 0, 1), DENY,
    LOAD(nr),

    // Name spaces. What clone3 asks for lies in memory, out of a filter's reach; without it libraries use clone.
    DENY_CALL(__NR_unshare), DENY_CALL(__NR_setns),
    IF_EQUAL(CLONE3, 0, 1), ABSENT,
    IF_EQUAL(__NR_clone, 0, 3), LOAD_AT(LOW(0)), IF_ANY_BIT(0x7E020000u, 0, 1), DENY,
    LOAD(nr),

    // File systems.
    DENY_CALL(__NR_mount), DENY_CALL(__NR_umount2), DENY_CALL(__NR_pivot_root), DENY_CALL(__NR_chroot),
    DENY_CALL(OPEN_TREE), DENY_CALL(MOVE_MOUNT), DENY_CALL(FSOPEN), DENY_CALL(FSCONFIG), DENY_CALL(FSMOUNT),
    DENY_CALL(FSPICK), DENY_CALL(MOUNT_SETATTR), DENY_CALL(OPEN_TREE_ATTR), DENY_CALL(__NR_swapon),
    DENY_CALL(__NR_swapoff), DENY_CALL(__NR_quotactl), DENY_CALL(QUOTACTL_FD), DENY_CALL(__NR_open_by_handle_at),
    DENY_CALL(__NR_fanotify_init),
    // Owners, modes, times and attributes of files, to which Landlock does not apply.
#ifdef __x86_64__
    DENY_CALL(__NR_chmod), DENY_CALL(__NR_chown), DENY_CALL(__NR_lchown), DENY_CALL(__NR_utime),
    DENY_CALL(__NR_utimes), DENY_CALL(__NR_futimesat),
#endif
    DENY_CALL(__NR_fchmod), DENY_CALL(__NR_fchmodat), DENY_CALL(FCHMODAT2), DENY_CALL(__NR_fchown),
    DENY_CALL(__NR_fchownat), DENY_CALL(__NR_utimensat), DENY_CALL(__NR_setxattr), DENY_CALL(__NR_lsetxattr),
    DENY_CALL(__NR_fsetxattr), DENY_CALL(__NR_removexattr), DENY_CALL(__NR_lremovexattr),
    DENY_CALL(__NR_fremovexattr), DENY_CALL(SETXATTRAT), DENY_CALL(REMOVEXATTRAT), DENY_CALL(FILE_SETATTR),

    // The kernel and the machine.
    DENY_CALL(__NR_bpf), DENY_CALL(__NR_perf_event_open), DENY_CALL(__NR_userfaultfd), DENY_CALL(__NR_add_key),
    DENY_CALL(__NR_request_key), DENY_CALL(__NR_keyctl), DENY_CALL(__NR_kexec_load), DENY_CALL(__NR_kexec_file_load),
    DENY_CALL(__NR_init_module), DENY_CALL(__NR_finit_module), DENY_CALL(__NR_delete_module), DENY_CALL(__NR_reboot),
    DENY_CALL(__NR_acct), DENY_CALL(__NR_syslog), DENY_CALL(__NR_sethostname), DENY_CALL(__NR_setdomainname),
    DENY_CALL(__NR_settimeofday), DENY_CALL(__NR_clock_settime), DENY_CALL(__NR_clock_adjtime),
    DENY_CALL(__NR_adjtimex), DENY_CALL(__NR_vhangup),
#ifdef __x86_64__
    DENY_CALL(__NR_iopl), DENY_CALL(__NR_ioperm), DENY_CALL(__NR_modify_ldt),
#endif
    ALLOW,
};

static PyObject *filter_calls(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    struct sock_fprog program = {sizeof kFilter / sizeof kFilter[0], (struct sock_filter *)kFilter};
    // For all threads, of which there should be one.
    const long failed = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (failed > 0) errno = ESRCH;  // a thread that could not be brought along
    if (failed) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *has_seccomp(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    const uint32_t action = SECCOMP_RET_KILL_PROCESS;
    return PyBool_FromLong(syscall(__NR_seccomp, SECCOMP_GET_ACTION_AVAIL, 0u, &action) == 0);
}

// Processes.

static PyObject *no_new_privileges(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *die_with_parent(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *adopt_orphans(PyObject *self, PyObject *unused) {
    (void)self, (void)unused;
    if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef kMethods[] = {
    {"landlock_abi", landlock_abi, METH_NOARGS, "Version of the kernel's Landlock; 0 where there is none."},
    {"has_seccomp", has_seccomp, METH_NOARGS, "Whether the kernel filters system calls."},
    {"no_new_privileges", no_new_privileges, METH_NOARGS, "No program gains rights by being started, from now on."},
    {"confine_files", confine_files, METH_VARARGS,
     "confine_files(folders, devices): write beneath these and to these alone, for good. The version of Landlock."},
    {"filter_calls", filter_calls, METH_NOARGS, "Deny the system calls that no run needs, for good."},
    {"die_with_parent", die_with_parent, METH_NOARGS, "SIGKILL for this process when its parent ends."},
    {"adopt_orphans", adopt_orphans, METH_NOARGS, "Become the parent of descendants whose own has ended."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT, "_confine", "What Linux denies a process for good.", 0, kMethods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__confine(void) { return PyModule_Create(&kModule); }
