/* A PKCS #11 library for tests: the one in SPY_MODULE, with the faults that other variables ask for. */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "pkcs11go.h"

static CK_FUNCTION_LIST real, spied;

static int asked(const char *fault)
{
	const char *faults = getenv("SPY_FAULTS");
	return faults != NULL && strstr(faults, fault) != NULL;
}

/* note appends a line to the file in SPY_LOG. */
static void note(const char *text)
{
	const char *path = getenv("SPY_LOG");
	FILE *file = path == NULL ? NULL : fopen(path, "a");
	if (file != NULL) {
		fprintf(file, "%s\n", text);
		fclose(file);
	}
}

static CK_RV initialize(CK_VOID_PTR args)
{
	if (asked("cannot-lock") && args != NULL && ((CK_C_INITIALIZE_ARGS_PTR)args)->flags != 0)
		return CKR_CANT_LOCK;
	if (asked("no-start"))
		return CKR_DEVICE_ERROR;
	return real.C_Initialize(args);
}

static CK_RV finalize(CK_VOID_PTR reserved)
{
	note("finalize");
	if (asked("crash-at-end"))
		raise(SIGSEGV);
	if (asked("hang-at-end"))
		for (;;)
			sleep(1000);
	return real.C_Finalize(reserved);
}

static CK_RV token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
	CK_RV rv = real.C_GetTokenInfo(slot, info);
	if (asked("locked"))
		info->flags |= CKF_USER_PIN_LOCKED;
	if (asked("final-try"))
		info->flags |= CKF_USER_PIN_FINAL_TRY;
	if (asked("no-login"))
		info->flags &= ~CKF_LOGIN_REQUIRED;
	return rv;
}

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG size)
{
	note("login");
	if (asked("print-pin")) {
		printf("C_Login: %.*s\n", (int)size, pin);
		fprintf(stderr, "C_Login: %.*s\n", (int)size, pin);
		fflush(stdout);
	}
	if (asked("crash-at-login"))
		raise(SIGSEGV);
	if (asked("hang-at-login"))
		for (;;)
			sleep(1000);
	if (asked("lock-at-login"))
		return CKR_PIN_LOCKED;
	return real.C_Login(session, user, pin, size);
}

static CK_RV decrypt_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
	if (asked("no-raw") && mechanism->mechanism == CKM_RSA_X_509)
		return CKR_MECHANISM_INVALID;
	if (asked("not-permitted"))
		return CKR_KEY_FUNCTION_NOT_PERMITTED;
	note(mechanism->mechanism == CKM_RSA_X_509 ? "raw" : "oaep");
	return real.C_DecryptInit(session, mechanism, key);
}

static CK_RV decrypt(CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_size, CK_BYTE_PTR out, CK_ULONG_PTR out_size)
{
	if (asked("removed"))
		return CKR_DEVICE_REMOVED;
	return real.C_Decrypt(session, in, in_size, out, out_size);
}

static CK_RV attribute(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR template, CK_ULONG count)
{
	if (asked("no-modulus") && count > 0 && template[0].type == CKA_MODULUS)
		return CKR_ATTRIBUTE_TYPE_INVALID;
	return real.C_GetAttributeValue(session, object, template, count);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
	CK_RV (*get)(CK_FUNCTION_LIST_PTR_PTR);
	CK_FUNCTION_LIST_PTR functions;
	void *module = dlopen(getenv("SPY_MODULE"), RTLD_NOW);
	if (module == NULL || (get = dlsym(module, "C_GetFunctionList")) == NULL || get(&functions) != CKR_OK)
		abort();
	real = spied = *functions;
	spied.C_Initialize = initialize;
	spied.C_Finalize = finalize;
	spied.C_GetTokenInfo = token_info;
	spied.C_Login = login;
	spied.C_DecryptInit = decrypt_init;
	spied.C_Decrypt = decrypt;
	spied.C_GetAttributeValue = attribute;
	*list = &spied;
	return CKR_OK;
}
